//! `model-list.json` of ComfyUI-Manager: which row an entry of it becomes.
//!
//! An entry tells the file's name, folder, address and size. It tells neither a hash nor who may download it nor what
//! it depends on, so of rows that exist these four columns stay as they are. The folder is the one to which
//! ComfyUI-Manager itself would download.

use std::borrow::Cow;

use serde::Deserialize;

use super::Row;

/// The folder of a `save_path` that is `default`, by the type in lower case, as ComfyUI-Manager has it.
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
/// The folder of every other type.
const OTHER: &str = "etc";
/// What stands for a file's name when the entry is a repository of many files.
const REPOSITORY: &str = "<huggingface>";

/// The fields that are read; `base` and `reference` are not.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, rename = "type", default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    save_path: Cow<'a, str>,
    #[serde(borrow, default)]
    description: Cow<'a, str>,
    #[serde(borrow)]
    filename: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow, default)]
    size: Cow<'a, str>,
}

/// The row of an entry.
///
/// # Errors
/// Why there can't be one.
pub fn row(json: &str) -> Result<Row, String> {
    let entry: Entry<'_> = serde_json::from_str(json).map_err(|error| super::file::wrong(&error))?;
    let filename = entry.filename.trim();
    if filename == REPOSITORY {
        return Err("it is a repository of many files: only single files can be served".into());
    }
    if filename.is_empty() || matches!(filename, "." | "..") || filename.contains(['/', '\\', ':']) {
        return Err(format!("filename {filename:?} is no name of a file: it needs one without /, \\ and :"));
    }
    let save_path = format!("{}/{filename}", folder(entry.save_path.trim(), entry.kind.trim())?);
    Ok(Row {
        id: Some(id(&save_path)),
        name: Some(filename.into()),
        download_url: Some(entry.url.trim().into()),
        file_size_gb: size(entry.size.trim())?,
        save_path: Some(save_path),
        description: Some(description(&entry.name, &entry.description)),
        ..Row::default()
    })
}

fn folder(save_path: &str, kind: &str) -> Result<String, String> {
    let kind = kind.to_lowercase();
    if save_path == "default" {
        let known = FOLDERS.iter().find(|(kinds, _)| kinds.contains(&kind.as_str()));
        return Ok(known.map_or(OTHER, |(_, folder)| folder).into());
    }
    let mut parts = save_path.split('/').filter(|part| !matches!(*part, "" | ".")).peekable();
    match parts.peek() {
        None => Err("save_path is empty: it needs the name of a folder, or `default`".into()),
        Some(&"custom_nodes") => Err("it belongs into the folder of a custom node, not into the models folder".into()),
        // The rule against absolute paths must still see it.
        Some(_) if save_path.starts_with('/') => Ok(save_path.trim_end_matches('/').into()),
        Some(_) => Ok(parts.collect::<Vec<_>>().join("/")),
    }
}

/// The path with `~` for `/`: an id that needs no escaping in a URL, as a rule. It depends on nothing but the path, so
/// it stays the same from import to import, and two paths never have the same one.
fn id(save_path: &str) -> String {
    save_path.replace('%', "%25").replace('~', "%7E").replace('/', "~")
}

/// The name that people know it by, and what it is, in one line.
fn description(name: &str, description: &str) -> String {
    let line = |text: &str| text.split(char::is_control).map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned();
    [line(name), line(description)].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" - ")
}

/// Decimal gigabytes of `4.71MB`, rounded up to hundredths so that a small file does not become none; empty = unknown.
fn size(text: &str) -> Result<Option<String>, String> {
    const UNITS: [(&str, i32); 5] = [("KB", 3), ("MB", 6), ("GB", 9), ("TB", 12), ("B", 0)];
    /// A hundredth of a gigabyte is ten to this many bytes.
    const HUNDREDTH: i32 = 7;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("size {text:?} can't be read: write it like 4.71MB or 11.9GB");
    let upper = text.to_ascii_uppercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, power)| Some((upper.strip_suffix(unit)?.trim_end(), *power)))
        .ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.len() > 15 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    // Whole numbers, because 11.9 has no exact binary form and would be rounded up to 11.91.
    let digits: u128 = digits.parse().map_err(|_| wrong())?;
    let power = unit - HUNDREDTH - fraction.len() as i32;
    let scale = 10_u128.pow(power.unsigned_abs());
    let hundredths = if power >= 0 { digits * scale } else { digits.div_ceil(scale) };
    Ok(Some(format!("{}.{:02}", hundredths / 100, hundredths % 100)))
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
    fn folders_are_those_of_comfyui_manager() {
        for (save_path, kind, expected) in [
            ("default", "VAE", "vae"),
            ("default", "upscale", "upscale_models"),
            ("default", "T2I-Style", "controlnet"),
            ("default", "never heard of", "etc"),
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
    fn different_paths_have_different_ids() {
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
    fn descriptions_are_one_line_with_the_name() {
        assert_eq!(description("A model", "It does.\nNOTE: 14 frames "), "A model - It does. NOTE: 14 frames");
        assert_eq!((description("A\tb", ""), description("", "c")), ("A b".into(), "c".into()));
    }
}
