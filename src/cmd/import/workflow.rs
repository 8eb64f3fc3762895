//! Finds the models embedded in a ComfyUI workflow and converts them to rows.
//!
//! ComfyUI's schema of workflows (`zModelFile` in `src/platform/workflow/validation/schemas/workflowSchema.ts` of
//! <https://github.com/Comfy-Org/ComfyUI_frontend>) allows an array `models` at the top and in the `properties` of each
//! node. Nodes are also in subgraph definitions, nested to any depth, and in `extra_data.extra_pnginfo.workflow` of a
//! request to `/prompt`. So the whole document is searched for such arrays, instead of a list of places that grows with
//! each version of the schema.
//!
//! A file has a name, URL, folder and maybe a hash. The columns that it lacks are preserved in existing rows.

use std::ops::Range;

use serde::Deserialize;
use simd_json::Node;

use super::comfyui;
use super::row::ImportRow;
use super::tape::{elements, members, value};
use crate::catalog::hash::FileHash;

/// A model file, `zModelFile` in the schema.
#[derive(Deserialize)]
pub struct ModelFile {
    name: String,
    url: String,
    directory: String,
    hash: Option<String>,
    hash_type: Option<String>,
}

/// Whether the document is a workflow: as ComfyUI saves it (an object with an array `nodes`), in API format (each node
/// has a `class_type`), a request to `/prompt`, which holds the second and maybe the first, or a request to a worker of
/// RunPod, which holds one of them as `input.workflow`.
#[must_use]
pub fn is_workflow(nodes: &[Node<'_>]) -> bool {
    let member = |object: usize, key: &str| members(nodes, object).find(|(member, _)| *member == key);
    let object = |start: &usize| is_object(nodes, *start);
    let input = Some(0).filter(object).and_then(|root| Some(member(root, "input")?.1)).filter(object);
    let workflow = input.and_then(|input| Some(member(input, "workflow")?.1));
    is_workflow_at(nodes, 0) || workflow.is_some_and(|start| is_workflow_at(nodes, start))
}

fn is_workflow_at(nodes: &[Node<'_>], start: usize) -> bool {
    let is_prompt = |object: usize| {
        let mut members = members(nodes, object).map(|(_, start)| start).filter(|start| is_object(nodes, *start));
        members.any(|node| has_key(nodes, node, "class_type"))
    };
    let is_part = |(key, start): (&str, usize)| match &nodes[start] {
        Node::Array { .. } => key == "nodes",
        Node::Object { .. } => ["prompt", "output"].contains(&key) && is_prompt(start),
        Node::String(_) | Node::Static(_) => false,
    };
    is_object(nodes, start) && (is_prompt(start) || members(nodes, start).any(is_part))
}

/// The embedded model files of a workflow, each with its jq path.
#[must_use]
pub fn model_files(nodes: &[Node<'_>]) -> Vec<(Range<usize>, String)> {
    let mut files = Vec::new();
    // Not recursive: the parser accepts documents of any depth.
    let mut unvisited = vec![(0, String::new())];
    while let Some((start, path)) = unvisited.pop() {
        let children: Vec<_> = match &nodes[start] {
            Node::Object { .. } => members(nodes, start).map(|(key, child)| (child, jq_path(&path, key))).collect(),
            Node::Array { .. } => {
                let numbered = elements(nodes, start).into_iter().enumerate();
                numbered.map(|(number, child)| (child.start, format!("{path}[{number}]"))).collect()
            }
            Node::String(_) | Node::Static(_) => continue,
        };
        if path.ends_with(".models") && matches!(nodes[start], Node::Array { .. }) {
            let here = children.into_iter().filter(|(child, _)| is_file(nodes, *child));
            files.extend(here.map(|(child, path)| (value(nodes, child), path)));
        } else {
            unvisited.extend(children.into_iter().rev());
        }
    }
    files
}

/// Whether an element of an array `models` is meant as a model file. Nodes of other programs have arrays of that name,
/// too, of strings for example.
fn is_file(nodes: &[Node<'_>], start: usize) -> bool {
    let has = |key: &str| has_key(nodes, start, key);
    is_object(nodes, start) && has("name") && (has("url") || has("directory"))
}

fn is_object(nodes: &[Node<'_>], start: usize) -> bool {
    matches!(nodes[start], Node::Object { .. })
}

fn has_key(nodes: &[Node<'_>], object: usize, key: &str) -> bool {
    members(nodes, object).any(|(member, _)| member == key)
}

/// The jq path of a member of the object at `path`, which is empty for the document.
fn jq_path(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match key.chars().all(plain) && key.starts_with(|c: char| !c.is_ascii_digit()) {
        true => format!("{path}.{key}"),
        false => format!("{}[{}]", if path.is_empty() { "." } else { path }, serde_json::Value::from(key)),
    }
}

/// Converts a file to a row.
///
/// # Errors
/// Why the file can't be converted, for people.
pub fn row(file: ModelFile) -> Result<ImportRow, String> {
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
