//! A row of a binary COPY: a row that passes the rules is rendered as JSON that is safe for machines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model_catalog::catalog::model::Rules;
use model_catalog::postgres::copy;
use serde_json::Value;

fuzz_target!(|row: &[u8]| {
    let Some((id, row)) = copy::decode(row) else { return };
    let mut json = Vec::new();
    match row.and_then(|row| row.render(&Rules::default(), &mut json)) {
        Err(fault) => assert!(!fault.to_string().is_empty()),
        Ok(()) => {
            let model: Value = serde_json::from_slice(&json).expect("JSON");
            let mirrors = model["mirrors"].as_array().map_or(&[][..], Vec::as_slice);
            let fields = 10 + usize::from(!mirrors.is_empty());
            assert_eq!((model.as_object().map(|model| model.len()), &model["id"]), (Some(fields), &Value::from(id)));
            let path = model["save_path"].as_str().expect("a path");
            let escapes = path.split('/').any(|part| part == "..");
            assert!(!path.is_empty() && !path.starts_with('/') && !path.contains('\\') && !escapes, "{path}");
            for url in mirrors.iter().chain([&model["download_url"]]) {
                let url = url.as_str().expect("a URL").trim().to_ascii_lowercase();
                assert!(url.starts_with("http:") || url.starts_with("https:"), "{url}");
            }
            let texts = model.as_object().into_iter().flat_map(|model| model.values()).filter_map(Value::as_str);
            texts.for_each(|text| assert!(!text.chars().any(char::is_control), "{text:?}"));
            let size = &model["file_size_gb"];
            assert!(size.is_null() || size.as_f64().is_some_and(|size| size.is_finite() && size >= 0.0), "{size}");
        }
    }
});
