//! What follows a failed attempt to download a file from a URL.

use super::error::AttemptError;

/// How the next request is made, as learnt from the responses of a URL:
///
/// ```text
///             `Step::WholeFile`: ranges refused, malformed, misaligned; another size or version;
///             nothing after the bytes that are there; a wrong hash of bytes from several rounds
///   Ranges ──────────────────────────────────────────────────────────────────▶ Whole
///     │ 200, or the whole file as a part: the same, with this response           │
///     ▼                                                                          ▼
///   complete ──▶ verified: hash and size decide, not headers ◀────────────── complete
/// ```
///
/// Nothing leads back from `Whole`, and each of its attempts counts as one without progress. Its response is not read
/// if it has as many bytes as are there. A server that claims 120 bytes of a file of 100, for example, refuses the
/// range from 100 on; the plain GET then says 100, so nothing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Ranges, over several connections once one response was as requested.
    Ranges,
    /// The whole file in one response, as a plain GET.
    Whole,
}

/// What follows a failed attempt at a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Another attempt.
    Retry,
    /// Another attempt in [`Mode::Whole`], with all its tries.
    WholeFile,
    /// No further attempt at this URL.
    GiveUp,
}

/// What decides about the next step beside the error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) mode: Mode,
    /// It used the address that was resolved for the plan, which may have expired.
    pub(super) planned: bool,
    /// The URL gave a response with a file before, so that an error may be temporary.
    pub(super) has_sent_file: bool,
    pub(super) progressed: bool,
    /// As many attempts as allowed made no progress.
    pub(super) failed_often: bool,
    /// Starting over costs little, or cannot be avoided.
    pub(super) may_start_over: bool,
    /// Time and bytes are left for another attempt.
    pub(super) allows_another: bool,
}

/// The first rule that applies decides.
pub(super) fn next_step(error: &AttemptError, attempt: Attempt) -> Step {
    let Attempt { mode, planned, has_sent_file, progressed, failed_often, may_start_over, allows_another } = attempt;
    let is_status = error.problem().is_status();
    match error {
        AttemptError::Fatal(_) if !(has_sent_file && is_status) => Step::GiveUp,
        AttemptError::TryWhole(_) if is_status && !planned && mode == Mode::Whole => Step::GiveUp,
        AttemptError::TryWhole(_)
            if !(is_status && planned) && mode == Mode::Ranges && !progressed && (failed_often || may_start_over) =>
        {
            Step::WholeFile
        }
        _ if failed_often || !allows_another => Step::GiveUp,
        _ => Step::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::error::Problem;

    #[test]
    fn error_and_attempt_decide_what_follows() {
        use AttemptError::{Fatal, Retryable, TryWhole};
        use Step::{GiveUp, Retry, WholeFile};
        let status = || Problem::Status { status: 403, host: String::new(), hint: String::new(), retry_after: None };
        let changed = || Problem::Changed(String::new());
        let usual = Attempt {
            mode: Mode::Ranges,
            planned: false,
            has_sent_file: false,
            progressed: false,
            failed_often: false,
            may_start_over: false,
            allows_another: true,
        };
        let whole = Attempt { mode: Mode::Whole, ..usual };
        let cheap = Attempt { may_start_over: true, ..usual };
        let often = Attempt { failed_often: true, ..usual };
        let over = Attempt { allows_another: false, ..usual };
        for (number, (error, attempt, step)) in [
            (Retryable(changed()), usual, Retry),
            (Retryable(changed()), whole, Retry),
            (Retryable(changed()), often, GiveUp),
            (Retryable(changed()), over, GiveUp),
            (Retryable(changed()), cheap, Retry),
            (Fatal(Problem::Checksum), usual, GiveUp),
            (Fatal(Problem::Checksum), Attempt { has_sent_file: true, ..usual }, GiveUp),
            (Fatal(status()), usual, GiveUp),
            (Fatal(status()), Attempt { has_sent_file: true, ..usual }, Retry),
            (TryWhole(status()), cheap, WholeFile),
            (TryWhole(status()), often, WholeFile),
            (TryWhole(status()), usual, Retry),
            (TryWhole(status()), over, GiveUp),
            (TryWhole(status()), whole, GiveUp),
            (TryWhole(status()), Attempt { planned: true, ..cheap }, Retry),
            (TryWhole(status()), Attempt { planned: true, ..whole }, Retry),
            (TryWhole(changed()), Attempt { planned: true, ..cheap }, WholeFile),
            (TryWhole(changed()), Attempt { progressed: true, ..cheap }, Retry),
            (TryWhole(changed()), Attempt { allows_another: false, ..cheap }, WholeFile),
            (TryWhole(changed()), whole, Retry),
            (TryWhole(changed()), Attempt { failed_often: true, ..whole }, GiveUp),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(next_step(&error, attempt), step, "row {number}");
        }
    }
}
