//! OpenMetrics, which Prometheus prefers to its own older text format and which the prometheus crate does not write.
//!
//! The metadata of a counter has its name without `_total`, quotes in help texts are escaped, and the text has an end:
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>. Samples are the same in both formats.

/// Converts the older format, in which all counters must be named `…_total`.
pub(super) fn from_text(text: &str) -> String {
    let mut converted = String::with_capacity(text.len() + 8);
    for line in text.lines() {
        match metadata(line) {
            Some(("HELP", name, help)) => {
                converted.extend(["# HELP ", name, " ", &help.replace('"', r#"\""#)]);
            }
            Some((keyword, name, value)) => converted.extend(["# ", keyword, " ", name, " ", value]),
            None => converted.push_str(line),
        }
        converted.push('\n');
    }
    converted + "# EOF\n"
}

/// Keyword, name of the family and text of a line that describes a metric.
fn metadata(line: &str) -> Option<(&str, &str, &str)> {
    let (keyword, rest) = line.strip_prefix("# ")?.split_once(' ')?;
    let (name, text) = rest.split_once(' ')?;
    Some((keyword, name.strip_suffix("_total").unwrap_or(name), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_converted_and_samples_are_not() {
        let text =
            "# HELP a_total Rows, \"all\" \\\\ of them.\n# TYPE a_total counter\na_total{b=\"# TYPE x_total y\"} 1\n";
        let expected =
            "# HELP a Rows, \\\"all\\\" \\\\ of them.\n# TYPE a counter\na_total{b=\"# TYPE x_total y\"} 1\n# EOF\n";
        assert_eq!(from_text(text), expected);
    }
}
