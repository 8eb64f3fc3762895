//! The bar charts of the benchmark: they have the figures of the table, and are readable XML.

use std::path::Path;

#[path = "../../../benches/load/chart.rs"]
mod chart;

const TABLE: &str = include_str!("../../../benches/results/load.md");
const DOCUMENT: &str = include_str!("../../../docs/benchmarks.md");
const PEERS: [(&str, &str); 4] = [
    ("load-nginx", "nginx, constant bytes"),
    ("load-limit", "the limit"),
    ("load-axum", "axum, a map in memory"),
    ("load-express", "Express + node-postgres"),
];

/// The names of the loads, and the ratios to `peer`.
fn column(peer: &str) -> Vec<(String, String)> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let mut table = TABLE.lines().skip_while(|line| !line.starts_with("| load |"));
    let title = format!("ratio to {peer}");
    let number = cells(table.next().unwrap()).iter().position(|cell| *cell == title).expect(peer);
    let rows = table.skip(1).take_while(|line| line.starts_with('|')).map(cells).map(|cells| {
        let ratio = cells[number].split(" (").next().unwrap_or_default().trim_matches('*');
        (cells[0].to_owned(), ratio.to_owned())
    });
    rows.collect()
}

#[test]
fn charts_show_the_ratios_of_the_table() {
    for (name, peer) in PEERS {
        let rows = column(peer);
        assert_eq!(rows.len(), 6, "{rows:?}");
        let path = format!("benches/results/{name}.svg");
        let written = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).unwrap();
        assert_eq!(written, chart::ratios(peer, &rows), "{path} is not of the figures in load.md: run `make bench`");
        assert!(DOCUMENT.contains(&format!("(../{path})")), "docs/benchmarks.md does not show {path}");
    }
}

#[test]
fn bars_are_as_long_as_their_ratios() {
    let rows = [("single", "0.5"), ("storm: of new connections", "2.0"), ("batch", "0.04"), ("burst", "missing")];
    let svg = chart::ratios("nginx", &rows.map(|(load, ratio)| (load.to_owned(), ratio.to_owned())));
    for part in [
        "<rect class=\"less\" x=\"200\" y=\"70\" width=\"90.0\"",
        "<rect class=\"more\" x=\"200\" y=\"100\" width=\"360.0\"",
        "<rect class=\"less\" x=\"200\" y=\"130\" width=\"7.2\"",
        ">0.5</text>",
        ">2.0</text>",
        ">1/25</text>",
        ">missing</text>",
        ">storm</text>",
        "d=\"M380.0 64V",
        "@media(prefers-color-scheme:dark)",
    ] {
        assert!(svg.contains(part), "{part} is not in {svg}");
    }
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
}
