//! Settings from the environment: duration and number of connections.

use std::str::FromStr;
use std::time::Duration;

use crate::Result;

/// Core of the server that is measured; everything else runs on the other core.
pub const SERVER_CORE: &str = "0";
/// Core of the load generators, of Postgres and of the benchmark itself.
pub const GENERATOR_CORE: &str = "1";
/// Connections of a keep-alive load and of the storm.
pub const CONNECTIONS: usize = 64;

pub struct Settings {
    /// Rounds of all peers in turns; the report has medians over the rounds.
    pub rounds: usize,
    /// One run of wrk.
    pub run: Duration,
    /// Connections of the burst.
    pub burst: usize,
    /// Idle connections while memory is measured.
    pub idle: usize,
}

impl Settings {
    pub fn read() -> Result<Self> {
        Ok(Self {
            rounds: number("BENCH_ROUNDS", 5)?,
            run: Duration::from_secs(number("BENCH_SECONDS", 4)?),
            burst: number("BENCH_BURST", 10_000)?,
            idle: number("BENCH_IDLE", 10_000)?,
        })
    }

    /// Express is slow enough to be measured in fewer and shorter rounds.
    pub fn with_express(&self, round: usize) -> bool {
        round.is_multiple_of(2)
    }

    pub fn express_run(&self) -> Duration {
        self.run.div_f64(2.0).max(Duration::from_secs(1))
    }
}

fn number<T: FromStr + PartialOrd + From<u8>>(name: &str, default: T) -> Result<T> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    number.ok_or_else(|| format!("{name} is {text:?}: it must be a whole number of at least 1").into())
}
