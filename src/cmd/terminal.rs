//! Text from outside (ids, names, file contents) may be hostile: it is escaped before it is printed.

/// Replaces every character that a terminal would obey or hide by its escape: control characters, and marks that
/// reverse or hide text.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_visible(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_unicode());
        }
    }
    escaped
}

/// Escapes the first `max_chars` characters; `…` stands for the rest.
pub(crate) fn escape_truncated(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => escape(&text[..end]) + "…",
        None => escape(text),
    }
}

/// Whether a terminal shows the character as it is.
pub(crate) fn is_visible(c: char) -> bool {
    let marks = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}', '\u{feff}'..='\u{feff}'];
    !c.is_control() && c != '\u{ad}' && !marks.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_marks_are_escaped() {
        assert_eq!(escape("größe ≥ 1\u{1b}[2J\n\u{9b}\u{202e}"), "größe ≥ 1\\u{1b}[2J\\u{a}\\u{9b}\\u{202e}");
        assert_eq!(escape_truncated("ab\nc", 3), "ab\\u{a}…");
        assert_eq!(escape_truncated("ab\n", 3), "ab\\u{a}");
    }
}
