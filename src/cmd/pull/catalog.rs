//! The catalog's models. The catalog is trusted to choose the files, but not to write outside the models folder, so
//! every field is validated again.

use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::fetch::error::Problem;
use crate::fetch::folder::SavePath;
use crate::fetch::hash::Hash;
use crate::fetch::model::{GIGABYTE, Listing, Model};

#[derive(Deserialize)]
struct BatchResponse<'a> {
    #[serde(borrow)]
    models: Vec<&'a RawValue>,
    not_found: Vec<String>,
    missing_dependencies: Option<Vec<MissingDependency>>,
}

#[derive(Deserialize)]
struct MissingDependency {
    id: String,
    required_by: String,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    download_url: String,
    file_size_gb: Option<f64>,
    hash: Option<String>,
    auth_required: bool,
    save_path: String,
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Parses a response. With `resolved`, it must list the dependencies that are missing.
pub(crate) fn parse(body: &[u8], resolved: bool) -> Option<Listing> {
    let response: BatchResponse<'_> = serde_json::from_slice(body).ok()?;
    if resolved && response.missing_dependencies.is_none() {
        return None;
    }
    let mut listing = Listing::default();
    for id in response.not_found {
        listing.missing.push((id, Problem::NotInCatalog));
    }
    for missing in response.missing_dependencies.into_iter().flatten() {
        listing.missing.push((missing.id, Problem::MissingDependency(missing.required_by)));
    }
    for text in response.models {
        // An invalid entry does not affect the others.
        match serde_json::from_str::<Entry>(text.get()) {
            Ok(mut entry) => {
                let id = entry.id.clone();
                let dependencies = std::mem::take(&mut entry.dependencies);
                listing.dependencies.extend(dependencies.into_iter().map(|dependency| (dependency, id.clone())));
                match model(entry) {
                    Ok(model) => listing.models.push(model),
                    Err(problem) => listing.missing.push((id, problem)),
                }
            }
            Err(error) => {
                let id = serde_json::from_str::<serde_json::Value>(text.get());
                let id = id.ok().and_then(|value| value.get("id")?.as_str().map(str::to_owned));
                listing.missing.push((id.unwrap_or_else(|| "?".into()), Problem::Entry(error.to_string())));
            }
        }
    }
    Some(listing)
}

fn model(entry: Entry) -> Result<Model, Problem> {
    let size = entry.file_size_gb.filter(|size| size.is_finite() && *size >= 0.0);
    // A catalog may list URLs with further schemes for other clients.
    let mut urls = std::iter::once(&entry.download_url).chain(&entry.mirrors).filter_map(|text| http_url(text));
    let no_url = || Problem::Entry("it has no http or https URL".into());
    Ok(Model {
        url: urls.next().ok_or_else(no_url)?,
        mirrors: urls.collect(),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
        bytes: size.map(|size| (size * GIGABYTE).round() as u64),
        gigabytes: size,
        hash: entry.hash.as_deref().and_then(Hash::parse),
        auth: entry.auth_required,
        path: SavePath::parse(&entry.save_path)?,
        id: entry.id,
    })
}

fn http_url(text: &str) -> Option<Url> {
    // The parser removes tabs and line feeds, so it would accept a different URL from the one that people read.
    let url = Url::parse(text).ok().filter(|_| !text.chars().any(char::is_control))?;
    (["http", "https"].contains(&url.scheme()) && url.has_host()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_entry_does_not_affect_others() {
        let body = br#"{"models":[{"id":"a","download_url":"https://h/a","file_size_gb":1.5,"hash":null,
            "auth_required":false,"save_path":"a","name":"x","dependencies":[]},{"id":"b"},7,
            {"id":"c","download_url":"file:///etc/passwd","auth_required":false,"save_path":"c"},
            {"id":"d","download_url":"https://h/d","auth_required":false,"save_path":"../d"},
            {"id":"e","download_url":"https://h/\te","auth_required":false,"save_path":"e"},
            {"id":"h","download_url":"s3://h/h","mirrors":["ftp://h/h","https://h/1","http://h/2"],
             "auth_required":false,"save_path":"h"}],
            "not_found":["f"],"missing_dependencies":[{"id":"g","required_by":"a"}]}"#;
        let listing = parse(body, true).expect("a list");
        assert_eq!(listing.models.len(), 2);
        let urls =
            |model: &Model| [&model.url].into_iter().chain(&model.mirrors).map(Url::to_string).collect::<Vec<_>>();
        assert_eq!(urls(&listing.models[1]), ["https://h/1", "http://h/2"]);
        assert_eq!((&*listing.models[0].id, listing.models[0].bytes), ("a", Some(1_500_000_000)));
        let missing: Vec<_> = listing.missing.iter().map(|(id, _)| &**id).collect();
        assert_eq!(missing, ["f", "g", "b", "?", "c", "d", "e"]);
    }

    #[test]
    fn input_that_is_not_a_list_of_models_is_rejected() {
        for body in ["", "{}", "[]", "<html>", r#"{"error":"x"}"#, r#"{"models":[],"not_found":[]}"#] {
            assert!(parse(body.as_bytes(), true).is_none(), "{body}");
        }
    }
}
