//! What was measured, as a table, and what it says about one Postgres.

use std::fmt::Write as _;

use crate::probe::Latencies;
use crate::{MODELS, POLL_INTERVAL, Result, process};

/// What was measured with so many replicas; processor times are in seconds.
pub struct Row {
    /// Loaders that followed.
    pub replicas: usize,
    /// From the commit being sent to a replica serving it: each replica, each change.
    pub each: Latencies,
    /// The same for the last replica of each change.
    pub last: Latencies,
    /// The database's, for one change.
    pub database: f64,
    /// The share of the session that writes.
    pub writer: f64,
    /// This process', for one change.
    pub harness: f64,
    /// Reads of the database for one change.
    pub looks: f64,
    /// The database's for one second without a change.
    pub idle: f64,
    /// Heartbeats in that second, as they were counted.
    pub heartbeats: f64,
}

/// The table, with a conclusion.
pub fn report(rows: &[Row], changes: usize, version: &str) -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let date = process::output("date", &["+%Y-%m-%d"])?;
    let mut text = format!(
        "# Fan-out\n\nWritten by `make bench-fanout` on {}; not edited by hand. Machine: {} {cores} cores; load average \
         at the end {}. PostgreSQL {version} without fsync, {MODELS} models, {changes} changes of one row, one after the \
         other. The replicas are loaders on one thread; they, Postgres and the bench share the cores, so the times \
         hold the processor time of all replicas, which in life have machines of their own.\n\n| what |",
        date.trim(),
        cpu.trim_start_matches(['\t', ' ', ':']),
        load.split(' ').next().unwrap_or_default(),
    );
    for row in rows {
        write!(text, " {} replica{} |", row.replicas, if row.replicas == 1 { "" } else { "s" })?;
    }
    write!(text, "\n|---|{}\n", "---:|".repeat(rows.len()))?;
    let mut line = |what: &str, of: &dyn Fn(&Row) -> String| {
        let cells: Vec<String> = rows.iter().map(of).collect();
        text += &format!("| {what} | {} |\n", cells.join(" | "));
    };
    let ms = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
    let time = |times: &Latencies, share| ms(times.quantile(share).as_secs_f64());
    line("commit sent → served by the last replica, median", &|row| time(&row.last, 0.5));
    line("– p99", &|row| time(&row.last, 0.99));
    line("– max", &|row| time(&row.last, 1.0));
    line("commit sent → served by a replica, median", &|row| time(&row.each, 0.5));
    line("– p99", &|row| time(&row.each, 0.99));
    line("– max", &|row| time(&row.each, 1.0));
    line("looks at the database for a change, by a replica", &|row| format!("{:.2}", row.looks / row.replicas as f64));
    line("the database's processor time for a change", &|row| ms(row.database));
    line("– of it the session that writes", &|row| ms(row.writer));
    line("– of it all else, for each replica", &|row| ms((row.database - row.writer) / row.replicas as f64));
    line("this bench's processor time for a change, its replicas included", &|row| ms(row.harness));
    line("heartbeats in a second without changes, every 10 s each", &|row| format!("{:.2}", row.heartbeats));
    line("the database's processor time in such a second", &|row| ms(row.idle));
    text += &conclusion(rows).ok_or("one count of replicas shows no growth")?;
    Ok(text)
}

/// What the figures say, by the straight line through the least and the most replicas.
fn conclusion(rows: &[Row]) -> Option<String> {
    let (least, most) = (rows.first()?, rows.last()?);
    let growth = |of: &dyn Fn(&Row) -> f64, by: &dyn Fn(&Row) -> f64| (of(most) - of(least)) / (by(most) - by(least));
    let replicas: &dyn Fn(&Row) -> f64 = &|row| row.replicas as f64;
    let each = growth(&|row| row.database, replicas);
    let write = (least.database - each * replicas(least)).max(0.0);
    let heartbeat = growth(&|row| row.idle, &|row| row.heartbeats);
    let feeds = |changes: f64| ((1.0 / changes - write) / each).max(0.0);
    Some(format!(
        "\nA change costs the database {:.2} ms, and {:.2} ms more for each replica. At one change a second, one core of \
         it is full with about {:.0} replicas, at ten a second with about {:.0}; a change then takes as long to reach \
         the last of them as to the next change. Without changes, heartbeats of {:.2} ms fill it with about {:.0}. \
         Beyond {} replicas this is a straight line, not a measurement. Past that, replicas get late: rings that come \
         while one looks fold into one. Then change many rows in one transaction, which rings once; have fewer \
         replicas with more machines each, since one answers tens of thousands of requests a second (`make bench`); \
         let most replicas follow hot standbys, which read everything by timer and never ask the primary; a longer \
         CATALOG_POLL_INTERVAL spares heartbeats, not the looks for changes.\n",
        write * 1e3,
        each * 1e3,
        feeds(1.0),
        feeds(10.0),
        heartbeat * 1e3,
        POLL_INTERVAL.as_secs_f64() / heartbeat,
        most.replicas,
    ))
}
