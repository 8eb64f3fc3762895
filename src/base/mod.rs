//! Parts that every other one may use and that know nothing about models: files that are replaced as a whole, delays
//! between attempts, printed errors, the HTTP client, standard error, and threads that are restarted.

pub(crate) mod atomic_file;
pub(crate) mod backoff;
pub mod error_chain;
pub(crate) mod http_client;
pub(crate) mod log_filter;
pub(crate) mod stderr;
pub(crate) mod supervisor;
