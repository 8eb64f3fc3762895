//! Finds the models embedded in a ComfyUI workflow and converts them to rows.
//!
//! ComfyUI's schema of workflows (`zModelFile` in `src/platform/workflow/validation/schemas/workflowSchema.ts` of
//! <https://github.com/Comfy-Org/ComfyUI_frontend>) allows an array `models` at the top and in the `properties` of each
//! node. Nodes are also in subgraph definitions, nested to any depth, and in `extra_data.extra_pnginfo.workflow` of a
//! request to `/prompt`. So the whole document is searched for such arrays, instead of a list of places that grows with
//! each version of the schema.
//!
//! A file has a name, URL, folder and maybe a hash. The columns that it lacks are preserved in existing rows.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::comfyui;
use super::json::{Member, elements, member, members};
use super::row::ImportRow;
use crate::catalog::hash::FileHash;

/// A model file, `zModelFile` in the schema.
#[derive(Deserialize)]
pub(super) struct ModelFile {
    name: String,
    url: String,
    directory: String,
    hash: Option<String>,
    hash_type: Option<String>,
}

/// Values below this depth are not searched: each level is parsed again.
const MAX_DEPTH: usize = 100;

/// Whether the document is a workflow: as ComfyUI saves it (an object with an array `nodes`), in API format (each node
/// has a `class_type`), a request to `/prompt`, which holds the second and maybe the first, or a request to a worker of
/// RunPod, which holds one of them as `input.workflow`.
pub(super) fn is_workflow(document: &RawValue) -> bool {
    let of_runpod = || member(member(document, "input")?, "workflow");
    is_bare_workflow(document) || of_runpod().is_some_and(is_bare_workflow)
}

fn is_bare_workflow(value: &RawValue) -> bool {
    let is_prompt = |members: &[Member<'_>]| members.iter().any(|(_, node)| member(node, "class_type").is_some());
    let is_part = |(key, value): &Member<'_>| match &**key {
        "nodes" => elements(value).is_some(),
        "prompt" | "output" => members(value).is_some_and(|members| is_prompt(&members)),
        _ => false,
    };
    members(value).is_some_and(|members| is_prompt(&members) || members.iter().any(is_part))
}

/// The embedded model files of a workflow, each with its jq path.
pub(super) fn model_files(document: &RawValue) -> Vec<Member<'_>> {
    let mut files = Vec::new();
    let mut unvisited = vec![(0, String::new(), document)];
    while let Some((depth, path, value)) = unvisited.pop() {
        let children: Vec<Member<'_>> = if let Some(elements) = elements(value) {
            let numbered = elements.into_iter().enumerate();
            let children = numbered.map(|(number, child)| (format!("{path}[{number}]"), child)).collect();
            if path.ends_with(".models") {
                files.extend(Vec::into_iter(children).filter(|(_, child)| is_file(child)));
                continue;
            }
            children
        } else {
            let members = members(value).unwrap_or_default().into_iter();
            members.map(|(key, child)| (jq_path(&path, &key), child)).collect()
        };
        if depth < MAX_DEPTH {
            unvisited.extend(children.into_iter().rev().map(|(path, child)| (depth + 1, path, child)));
        }
    }
    files
}

/// Whether an element of an array `models` is meant as a model file. Nodes of other programs have arrays of that name,
/// too, of strings for example.
fn is_file(value: &RawValue) -> bool {
    let has = |key: &str| member(value, key).is_some();
    has("name") && (has("url") || has("directory"))
}

/// The jq path of a member of the object at `path`, which is empty for the document.
fn jq_path(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if key.chars().all(plain) && key.starts_with(|c: char| !c.is_ascii_digit()) {
        format!("{path}.{key}")
    } else {
        format!("{}[{}]", if path.is_empty() { "." } else { path }, serde_json::Value::from(key))
    }
}

/// Converts a file to a row.
///
/// # Errors
/// Why the file can't be converted, for people.
pub(super) fn row(file: ModelFile) -> Result<ImportRow, String> {
    let (name, directory) = (file.name.trim(), file.directory.trim().trim_end_matches('/'));
    // Some workflows name the folder as seen from ComfyUI's own.
    let directory = directory.strip_prefix("models/").unwrap_or(directory);
    if directory.is_empty() {
        return Err("directory is empty: it must be a folder below the models folder, such as checkpoints".into());
    }
    // A name may be that of a file in a subfolder, as in ComfyUI's own lists of files.
    let file_name = name.rsplit('/').next().unwrap_or_default();
    if file_name.is_empty() {
        return Err(format!("name {name:?} is not that of a file"));
    }
    let save_path = format!("{directory}/{name}");
    Ok(ImportRow {
        id: Some(comfyui::id(&save_path)),
        name: Some(file_name.into()),
        download_url: Some(file.url.trim().into()),
        hash: hash(file.hash.as_deref(), file.hash_type.as_deref())?,
        save_path: Some(save_path),
        ..ImportRow::default()
    })
}

/// The hash as a row has it: its digits alone, if these are recognized as what they are, otherwise after the kind.
fn hash(hash: Option<&str>, kind: Option<&str>) -> Result<Option<String>, String> {
    let given = |text: Option<&'_ str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let Some(hash) = given(hash) else { return Ok(None) };
    let named = match given(kind).filter(|_| !hash.contains([':', '='])) {
        Some(kind) => format!("{kind}:{hash}"),
        None => hash,
    };
    let parsed = FileHash::parse(&named)
        .ok_or_else(|| format!("hash {named:?} is not that of a known kind: hash_type must name it, such as SHA256"))?;
    let alone = FileHash::parse(&parsed.digits);
    Ok(Some(if alone.as_ref() == Some(&parsed) { parsed.digits } else { named }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_written_as_rows_have_them() {
        let (sha256, upper) = ("0a".repeat(32), "0A".repeat(32));
        let blake = format!("blake3:{sha256}");
        let md5 = "0b".repeat(16);
        for (digits, kind, expected) in [
            (None, Some("SHA256"), Some(None)),
            (Some(""), None, Some(None)),
            (Some(&*upper), Some("SHA256"), Some(Some(&*sha256))),
            (Some(&upper), None, Some(Some(&sha256))),
            (Some(&md5), Some("md5"), Some(Some(&md5))),
            (Some(&sha256), Some("blake3"), Some(Some(&blake))),
            (Some(&blake), Some("BLAKE3"), Some(Some(&blake))),
            (Some(&sha256), Some("md5"), None),
            (Some(&sha256), Some("AutoV2"), None),
            (Some("A5F58EB1C3"), None, None),
        ] {
            let expected = expected.map(|hash| hash.map(str::to_owned));
            assert_eq!(hash(digits, kind).ok(), expected, "{digits:?} {kind:?}");
        }
    }

    #[test]
    fn models_are_found_down_to_the_maximum_depth() {
        let found = |depth: usize| {
            let models = r#"{"models":[{"name":"a","directory":"vae"}]}"#;
            let text = format!(r#"{{"nodes":{}{models}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            let document: &RawValue = serde_json::from_str(&text).expect("JSON");
            assert!(is_workflow(document));
            model_files(document).len()
        };
        assert_eq!([1, 5, MAX_DEPTH - 2, MAX_DEPTH - 1, 10_000].map(found), [1, 1, 1, 0, 0]);
    }

    #[test]
    fn save_paths_are_the_folder_and_the_name() {
        let row = |directory: &str, name: &str| {
            let url = "https://example.org/x".to_owned();
            row(ModelFile { name: name.into(), url, directory: directory.into(), hash: None, hash_type: None })
        };
        for (directory, name, path, id, file) in [
            ("vae", "a.safetensors", "vae/a.safetensors", "vae~a.safetensors", "a.safetensors"),
            ("loras/wan/ ", "a~b", "loras/wan/a~b", "loras~wan~a%7Eb", "a~b"),
            ("models/checkpoints", "x", "checkpoints/x", "checkpoints~x", "x"),
            ("checkpoints", "SDXL/base", "checkpoints/SDXL/base", "checkpoints~SDXL~base", "base"),
        ] {
            let row = row(directory, name).expect(path);
            assert_eq!((row.save_path.as_deref(), row.id.as_deref()), (Some(path), Some(id)));
            assert_eq!(row.name.as_deref(), Some(file));
        }
        for (directory, name) in [("", "a"), (" / ", "a"), ("vae", ""), ("vae", "a/")] {
            assert!(row(directory, name).is_err(), "{directory:?} {name:?}");
        }
    }
}
