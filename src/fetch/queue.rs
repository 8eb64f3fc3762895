//! The files that wait for their download, and how many are downloaded at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::progress::Outcome;
use super::{Context, Pending, plan, transfer};

/// Pause before retrying a file that another process is downloading, or whose handle was stale: nothing tells when to.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// Files to download; those that can use several connections, and small ones.
struct Queues {
    large: Mutex<VecDeque<Pending>>,
    small: Mutex<VecDeque<Pending>>,
}

/// Downloads files, several concurrently. The latency of small ones is hidden by as many at a time as there are
/// connections.
pub(super) async fn download(context: &Arc<Context>, pending: Vec<Pending>) {
    let (small, large): (VecDeque<_>, VecDeque<_>) = pending.into_iter().partition(plan::is_small);
    let lanes = context.settings.parallel.min(large.len() + small.len());
    let small_lanes = (context.settings.parallel * context.settings.connections).saturating_sub(lanes).min(small.len());
    let queues = Arc::new(Queues { large: Mutex::new(large), small: Mutex::new(small) });
    let mut tasks = JoinSet::new();
    for lane in 0..lanes + small_lanes {
        tasks.spawn(work(Arc::clone(context), Arc::clone(&queues), lane >= lanes));
    }
    while tasks.join_next().await.is_some() {}
}

/// Downloads files until there are none left; `only_small`: no large ones. A file that another process is downloading
/// is moved to the end of its queue, so processes that share a folder divide the work.
async fn work(context: Arc<Context>, queues: Arc<Queues>, only_small: bool) {
    let pop = |queue: &Mutex<VecDeque<Pending>>| queue.lock().pop_front();
    loop {
        if *context.stop.borrow() {
            return;
        }
        let large = if only_small { None } else { pop(&queues.large) };
        let queue = if large.is_some() { &queues.large } else { &queues.small };
        let Some(mut pending) = large.or_else(|| pop(queue)) else { return };
        let progress = &pending.item.1;
        match transfer::run(&context, &pending).await {
            Ok(transfer::Attempted::Fetched) => progress.finish(Outcome::Fetched),
            Ok(transfer::Attempted::Present) => progress.finish(Outcome::Present),
            Ok(transfer::Attempted::Busy) => {
                let (done, _) = progress.bytes();
                if pending.elsewhere.is_none_or(|(_, before)| before != done) {
                    pending.elsewhere = Some((Instant::now(), done));
                }
                queue.lock().push_back(pending);
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(problem) if problem.is_stale() && pending.reopened < context.settings.tries => {
                progress.failed_attempt(&progress.source(), &problem);
                pending.reopened += 1;
                queue.lock().push_back(pending);
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(problem) => progress.missing(&problem),
        }
    }
}
