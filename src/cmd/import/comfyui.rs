//! Converts entries of ComfyUI-Manager's `model-list.json` to rows.
//!
//! An entry has the name, folder, URL and size of a file, but no hash, access rules, dependencies or mirrors, so these
//! columns of existing rows are preserved. The folder is the one that ComfyUI-Manager itself downloads to.

use serde::Deserialize;

use super::row::ImportRow;
use crate::catalog::size::gigabytes;

/// The folders that ComfyUI-Manager uses for the `save_path` `default`, by the type in lower case.
const FOLDERS: [(&[&str], &str); 10] = [
    (&["checkpoint", "checkpoints", "unclip"], "checkpoints"),
    (&["clip", "text_encoders"], "text_encoders"),
    (&["vae"], "vae"),
    (&["lora"], "loras"),
    (&["controlnet", "t2i-adapter", "t2i-style"], "controlnet"),
    (&["clip_vision"], "clip_vision"),
    (&["gligen"], "gligen"),
    (&["upscale"], "upscale_models"),
    (&["embedding", "embeddings"], "embeddings"),
    (&["unet", "diffusion_model"], "diffusion_models"),
];
/// The folder for any other type.
const OTHER_FOLDER: &str = "etc";
/// The file name of an entry that is a repository of many files.
const REPOSITORY: &str = "<huggingface>";

/// An entry; its fields `base` and `reference` are not used.
#[derive(Deserialize)]
pub(crate) struct ListEntry {
    name: String,
    #[serde(rename = "type", default)]
    kind: String,
    save_path: String,
    #[serde(default)]
    description: String,
    filename: String,
    url: String,
    #[serde(default)]
    size: String,
}

/// Converts an entry to a row.
///
/// # Errors
/// Why the entry can't be converted, for people.
pub(crate) fn row(entry: ListEntry) -> Result<ImportRow, String> {
    let filename = entry.filename.trim();
    if filename == REPOSITORY {
        return Err("it is a repository of many files; only single files can be served".into());
    }
    if filename.is_empty() || matches!(filename, "." | "..") || filename.contains(['/', '\\', ':']) {
        return Err(format!("filename {filename:?} is not a file name: it must be non-empty and without /, \\ and :"));
    }
    let save_path = format!("{}/{filename}", folder(entry.save_path.trim(), entry.kind.trim())?);
    Ok(ImportRow {
        id: Some(id(&save_path)),
        name: Some(filename.into()),
        download_url: Some(entry.url.trim().into()),
        file_size_gb: size(entry.size.trim())?,
        save_path: Some(save_path),
        description: Some(description(&entry.name, &entry.description)),
        ..ImportRow::default()
    })
}

fn folder(save_path: &str, kind: &str) -> Result<String, String> {
    let kind = kind.to_lowercase();
    if save_path == "default" {
        let known = FOLDERS.iter().find(|(kinds, _)| kinds.contains(&kind.as_str()));
        return Ok(known.map_or(OTHER_FOLDER, |(_, folder)| folder).into());
    }
    let mut parts = save_path.split('/').filter(|part| !matches!(*part, "" | ".")).peekable();
    match parts.peek() {
        None => Err("save_path is empty: it must be a folder or `default`".into()),
        Some(&"custom_nodes") => Err("it belongs in the folder of a custom node, not in the models folder".into()),
        // Preserve the slash, so that the rule against absolute paths applies.
        Some(_) if save_path.starts_with('/') => Ok(save_path.trim_end_matches('/').into()),
        Some(_) => Ok(parts.collect::<Vec<_>>().join("/")),
    }
}

/// The path with `~` instead of `/`, an id that rarely needs escaping in a URL. It depends only on the path, so it is
/// stable across imports, and two paths never have the same id.
pub(crate) fn id(save_path: &str) -> String {
    save_path.replace('%', "%25").replace('~', "%7E").replace('/', "~")
}

/// The display name and the description in one line.
fn description(name: &str, description: &str) -> String {
    let line = |text: &str| text.split(char::is_control).map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned();
    [line(name), line(description)].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" - ")
}

/// Converts a size such as `4.71MB` to decimal gigabytes. Rounds up to hundredths, so that a small file does not have a
/// size of 0. An empty text is an unknown size.
fn size(text: &str) -> Result<Option<String>, String> {
    const UNITS: [(&str, u32); 5] = [("KB", 3), ("MB", 6), ("GB", 9), ("TB", 12), ("B", 0)];
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || format!("size {text:?} can't be parsed: write it like 4.71MB or 11.9GB");
    let upper = text.to_ascii_uppercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, power)| Some((upper.strip_suffix(unit)?.trim_end(), *power)))
        .ok_or_else(invalid)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.len() > 15 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(invalid());
    }
    // Integers, because 11.9 has no exact binary representation and would be rounded up to 11.91.
    let digits: u128 = digits.parse().map_err(|_| invalid())?;
    let bytes = (digits * 10_u128.pow(unit)).div_ceil(10_u128.pow(fraction.len() as u32));
    Ok(Some(gigabytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_hundredths_of_a_gigabyte() {
        for (text, gigabytes) in [
            ("4.71MB", "0.01"),
            ("11.9GB", "11.90"),
            ("628MB", "0.63"),
            ("1.26GB", "1.26"),
            ("1.261 gb", "1.27"),
            ("340KB", "0.01"),
            ("2TB", "2000.00"),
            ("10000000B", "0.01"),
            ("10000001B", "0.02"),
            ("0B", "0.00"),
            (".5GB", "0.50"),
        ] {
            assert_eq!(size(text), Ok(Some(gigabytes.into())), "{text}");
        }
        assert_eq!(size(""), Ok(None));
        for text in ["GB", "4,7GB", "-1GB", "1e3GB", "12", "1.2.3GB", "about 4GB", "1GiB", "1234567890123456GB", "."] {
            assert!(size(text).is_err(), "{text} gave {:?}", size(text));
        }
    }

    #[test]
    fn default_folders_match_comfyui_manager() {
        for (save_path, kind, expected) in [
            ("default", "VAE", "vae"),
            ("default", "upscale", "upscale_models"),
            ("default", "T2I-Style", "controlnet"),
            ("default", "unknown", "etc"),
            ("checkpoints/SDXL", "checkpoint", "checkpoints/SDXL"),
            ("checkpoints//SDXL/./", "checkpoint", "checkpoints/SDXL"),
            ("/etc/", "x", "/etc"),
            ("../x", "x", "../x"),
        ] {
            assert_eq!(folder(save_path, kind).as_deref(), Ok(expected), "{save_path} {kind}");
        }
        for save_path in ["", "/", ".", "custom_nodes/some-node/models"] {
            assert!(folder(save_path, "vae").is_err(), "{save_path}");
        }
    }

    #[test]
    fn ids_are_unique_per_path() {
        assert_eq!(id("loras/FLUX.1/Real_ism-v2.safetensors"), "loras~FLUX.1~Real_ism-v2.safetensors");
        let parts = ["a", "/", "~", "%", "7E", "25", "b"];
        let mut random = fastrand::Rng::with_seed(5);
        let mut paths = std::collections::HashMap::new();
        for _ in 0..20_000 {
            let path: String = (0..random.usize(1..6)).map(|_| parts[random.usize(0..parts.len())]).collect();
            assert_eq!(paths.entry(id(&path)).or_insert_with(|| path.clone()), &path);
        }
    }

    #[test]
    fn descriptions_are_the_name_and_text_in_one_line() {
        assert_eq!(description("A model", "It does.\nNOTE: 14 frames "), "A model - It does. NOTE: 14 frames");
        assert_eq!((description("A\tb", ""), description("", "c")), ("A b".into(), "c".into()));
    }
}
