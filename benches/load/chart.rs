//! Bar charts of the ratios, as SVG text that documents show beside the table. Colors follow the reader's scheme, on a
//! background of their own, because an image does not know that of the page around it.

use std::fmt::Write;

const WIDTH: usize = 640;
const ROW: usize = 30;
const FIRST_ROW: usize = 84;
/// Where bars begin, and the length of the longest one.
const LEFT: usize = 200;
const LONGEST: f64 = 360.0;
const STYLE: &str = "text{font:14px system-ui,sans-serif;fill:#17212b}.title{font-weight:600}.value{stroke:#fff;stroke-width:4;paint-order:stroke}.soft{fill:#556372}\
                     .card{fill:#fff;stroke:#d9e0e6}.less{fill:#0b6b63}.more{fill:#b45309}.one{stroke:#556372;stroke-dasharray:4 3}\
                     @media(prefers-color-scheme:dark){text{fill:#e5ebef}.soft{fill:#a0aeb9}.card{fill:#172027;stroke:#2b3842}\
                     .value{stroke:#172027}\
                     .less{fill:#5ed0c3}.more{fill:#f2c569}.one{stroke:#a0aeb9}}";

/// A chart with one bar per load. `rows` are the names of the loads and the ratios to `peer` as the table has them, so
/// that the chart and the table cannot differ; text that is not a number is shown in the place of its bar.
pub fn ratios(peer: &str, rows: &[(String, String)]) -> String {
    let mut svg = String::new();
    // Writing to a String can't fail.
    let _ = write(&mut svg, peer, rows);
    svg
}

fn write(svg: &mut String, peer: &str, rows: &[(String, String)]) -> std::fmt::Result {
    let height = FIRST_ROW + ROW * rows.len() + 10;
    let title = format!("CPU time per request, relative to {peer}");
    let largest = rows.iter().filter_map(|(_, ratio)| ratio.parse().ok()).fold(1.0, f64::max);
    let length = |ratio: f64| LONGEST * ratio / largest;
    let one = LEFT as f64 + length(1.0);
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-labelledby=\"title\">\n<title id=\"title\">{title}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"card\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n\
         <text class=\"title\" x=\"20\" y=\"30\">{title}</text>\n\
         <text class=\"soft\" x=\"20\" y=\"52\">Shorter is better; the dashed line is {peer}.</text>",
        WIDTH - 1,
        height - 1
    )?;
    let (mut texts, bottom) = (String::new(), height - 14);
    for (number, (load, ratio)) in rows.iter().enumerate() {
        let y = FIRST_ROW + ROW * number;
        let label = load.split(':').next().unwrap_or(load);
        let (width, shown) = match ratio.parse::<f64>() {
            Ok(value) if value < 0.1 => (length(value), format!("1/{:.0}", 1.0 / value)),
            value => (value.map_or(0.0, length), ratio.clone()),
        };
        let (class, end) = (if width > length(1.0) { "more" } else { "less" }, LEFT as f64 + width + 8.0);
        let top = y - 14;
        writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"18\" rx=\"2\"/>"
        )?;
        writeln!(
            texts,
            "<text x=\"20\" y=\"{y}\">{label}</text><text class=\"value\" x=\"{end:.1}\" y=\"{y}\">{shown}</text>"
        )?;
    }
    writeln!(svg, "<path class=\"one\" d=\"M{one:.1} {}V{bottom}\"/>\n{texts}</svg>", FIRST_ROW - 20)
}
