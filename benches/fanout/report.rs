//! The results as a table, and the conclusion about one Postgres.

use std::fmt::Write as _;

use crate::heading::heading;
use crate::probe::Latencies;
use crate::{MODELS, POLL_INTERVAL, Result, Setup};

/// The measurements with one number of replicas; CPU times are in seconds.
pub struct Row {
    /// The loaders.
    pub setup: Setup,
    /// Time from sending the commit until a replica serves it, for each replica and change.
    pub each: Latencies,
    /// The same for the slowest replica of each change.
    pub last: Latencies,
    /// CPU time of the primary per change.
    pub database: f64,
    /// The part of it that the writing session used.
    pub writer: f64,
    /// CPU time of this process per change.
    pub harness: f64,
    /// Reads of the database per change.
    pub reads: f64,
    /// CPU time of the primary per second without changes.
    pub idle: f64,
    /// CPU time of the standby per second without changes.
    pub standby_idle: f64,
    /// Measured polls per second without changes.
    pub polls: f64,
}

/// The table, with a conclusion.
pub fn report(rows: &[Row], changes: usize, version: &str) -> Result<String> {
    let mut text = heading("Fan-out", "bench-fanout")?;
    write!(
        text,
        " PostgreSQL {version} without fsync, {MODELS} models, {changes} changes of one row, one after the other. The \
         replicas are loaders on one thread; they, Postgres, its streaming standby and the benchmark share the cores, so \
         the times include the CPU time of all replicas, which run on separate machines in production.\n\n| measurement |",
    )?;
    for row in rows {
        write!(text, " {} |", row.setup.title())?;
    }
    write!(text, "\n|---|{}\n", "---:|".repeat(rows.len()))?;
    let mut line = |what: &str, of: &dyn Fn(&Row) -> String| {
        let cells: Vec<String> = rows.iter().map(of).collect();
        text += &format!("| {what} | {} |\n", cells.join(" | "));
    };
    let ms = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
    let time = |times: &Latencies, share| ms(times.quantile(share).as_secs_f64());
    line("commit sent → served by the slowest replica, median", &|row| time(&row.last, 0.5));
    line("– p99", &|row| time(&row.last, 0.99));
    line("– max", &|row| time(&row.last, 1.0));
    line("commit sent → served by a replica, median", &|row| time(&row.each, 0.5));
    line("– p99", &|row| time(&row.each, 0.99));
    line("– max", &|row| time(&row.each, 1.0));
    line("reads of the database per change and replica", &|row| {
        if row.setup.standby.is_some() { "–".into() } else { format!("{:.2}", row.reads / row.setup.replicas as f64) }
    });
    line("CPU time of the primary per change", &|row| ms(row.database));
    line("– writing session", &|row| ms(row.writer));
    line("– everything else", &|row| ms(row.database - row.writer));
    line("– everything else, per replica", &|row| ms((row.database - row.writer) / row.setup.replicas as f64));
    line("CPU time of the benchmark with its replicas per change", &|row| ms(row.harness));
    line("polls per second without changes", &|row| format!("{:.2}", row.polls));
    line("CPU time of the primary per second without changes", &|row| ms(row.idle));
    line("CPU time of the standby per second without changes", &|row| ms(row.standby_idle));
    line("– per replica of the standby", &|row| match row.setup.standby {
        Some(_) => ms(row.standby_idle / row.setup.replicas as f64),
        None => "–".into(),
    });
    let (on_primary, on_standby): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.setup.standby.is_none());
    text += &conclusion(&on_primary).ok_or("at least two numbers of replicas are needed")?;
    text += &standby_conclusion(&on_standby).ok_or("no replicas of a standby were measured")?;
    Ok(text)
}

/// What replicas of a standby cost the primary and the standby.
fn standby_conclusion(rows: &[&Row]) -> Option<String> {
    let least = rows.first()?;
    let most = rows.iter().max_by_key(|row| row.setup.replicas)?;
    Some(format!(
        "\nA change costs the primary {:.2} ms of CPU time with {} replica on a standby and {:.2} ms with {}. Each replica \
         costs the standby {:.2} ms per second at an interval of {} ms.\n",
        least.database * 1e3,
        least.setup.replicas,
        most.database * 1e3,
        most.setup.replicas,
        most.standby_idle * 1e3 / most.setup.replicas as f64,
        most.setup.standby?.as_millis(),
    ))
}

/// Linear extrapolation from the smallest and the largest number of replicas.
fn conclusion(rows: &[&Row]) -> Option<String> {
    let (least, most) = (rows.first()?, rows.last()?);
    let growth = |of: &dyn Fn(&Row) -> f64, by: &dyn Fn(&Row) -> f64| (of(most) - of(least)) / (by(most) - by(least));
    let replicas: &dyn Fn(&Row) -> f64 = &|row| row.setup.replicas as f64;
    let each = growth(&|row| row.database, replicas);
    let write = (least.database - each * replicas(least)).max(0.0);
    let poll = growth(&|row| row.idle, &|row| row.polls);
    let feeds = |changes: f64| ((1.0 / changes - write) / each).max(0.0);
    Some(format!(
        "\nA change costs Postgres {:.2} ms of CPU time, plus {:.2} ms per replica. At one change per second, about {:.0} \
         replicas saturate one core; at ten per second, about {:.0}. A change then reaches the slowest replica only \
         when the next one is made. Without changes, a poll costs {:.2} ms, so about {:.0} replicas saturate a core. \
         Beyond {} replicas these figures are extrapolated. With more replicas, changes arrive later: notifications \
         that arrive during a read are merged into one. To avoid this, change many rows in one transaction, which \
         sends one notification; use fewer replicas with more clients each, since one replica serves tens of \
         thousands of requests per second (`make bench`); or let most replicas follow hot standbys, which puts no \
         load on the primary. A longer CATALOG_POLL_INTERVAL saves polls, but not the reads after changes.\n",
        write * 1e3,
        each * 1e3,
        feeds(1.0),
        feeds(10.0),
        poll * 1e3,
        POLL_INTERVAL.as_secs_f64() / poll,
        most.setup.replicas,
    ))
}
