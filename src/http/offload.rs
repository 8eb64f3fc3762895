//! Runs work that would delay the other requests of a worker thread, such as catalog scans, on one thread beside the
//! workers.
//!
//! The thread is started with the server: if a request had to start one, it could fail when the system's limit is
//! reached. Each server has few of these threads, one for each kind of work whose jobs may wait for each other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A bounded queue of jobs and the thread that runs them, one after the other.
#[derive(Debug)]
pub struct Offload {
    jobs: SyncSender<Job>,
    /// Locked by the thread that runs the jobs. It is kept here so that jobs stay queued if that thread is restarted.
    queue: Mutex<Receiver<Job>>,
}

/// Why a job has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OffloadError {
    /// Too many jobs are queued.
    Busy,
    /// The job panicked; the panic hook has logged it.
    Panicked,
}

impl Offload {
    /// A queue of at most `max_queued` jobs, in addition to the one that runs. They run once a thread calls
    /// [`Offload::run_jobs`].
    pub(crate) fn new(max_queued: usize) -> Self {
        let (jobs, queue) = sync_channel(max_queued);
        Self { jobs, queue: Mutex::new(queue) }
    }

    /// Queues `job` and waits for its result. If this future is dropped, a job that has not begun never does: what it
    /// owns, such as a permit, is dropped when its turn comes. One that has begun goes on.
    pub(crate) fn run<T, F>(&self, job: F) -> impl Future<Output = Result<T, OffloadError>> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        let job = Box::new(move || {
            if !sender.is_closed() {
                let _ = sender.send(job());
            }
        });
        let queued = self.jobs.try_send(job).map_err(|_| OffloadError::Busy);
        async move {
            queued?;
            // A panic drops the sender.
            result.await.map_err(|_| OffloadError::Panicked)
        }
    }

    /// Runs the jobs on the current thread, forever, at a priority lowered by `nice`. A panic ends only its own job.
    pub fn run_jobs(&self, nice: i32) {
        // Where it is forbidden, the jobs run at normal priority.
        let _ = rustix::process::setpriority_process(None, nice);
        let queue = self.queue.lock();
        while let Ok(job) = queue.recv() {
            // Jobs and requests share only atomics, locks that cannot be poisoned, and immutable snapshots.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    fn started(max_queued: usize) -> Arc<Offload> {
        let offload = Arc::new(Offload::new(max_queued));
        let thread = Arc::clone(&offload);
        std::thread::spawn(move || thread.run_jobs(0));
        offload
    }

    #[tokio::test]
    async fn a_panic_ends_its_job_and_the_next_one_runs() {
        let offload = started(1);
        assert_eq!(offload.run(|| 1).await, Ok(1));
        assert_eq!(offload.run(|| panic!("deliberate panic")).await.map(|(): ()| ()), Err(OffloadError::Panicked));
        assert_eq!(offload.run(|| 2).await, Ok(2));
    }

    #[tokio::test]
    async fn a_full_queue_is_busy_and_a_dropped_request_releases_what_its_job_owns() {
        let offload = started(1);
        let (end, blocked) = channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let blocker = Arc::clone(&offload);
        let running = tokio::spawn(async move {
            let job = move || {
                let _ = begun.send(());
                let _ = blocked.recv();
            };
            blocker.run(job).await
        });
        has_begun.await.expect("the first job runs");
        let permit = Arc::new(());
        let held = Arc::clone(&permit);
        let mut queued = Box::pin(offload.run(move || drop(held)));
        assert!(futures_util::poll!(&mut queued).is_pending());
        assert_eq!(offload.run(|| ()).await, Err(OffloadError::Busy));
        drop(queued);
        drop(end);
        assert_eq!(running.await.expect("no panic"), Ok(()));
        // Runs after the job of the dropped request.
        while offload.run(|| ()).await == Err(OffloadError::Busy) {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&permit), 1);
    }
}
