//! `model-catalog warm`: lets the caches of a site fetch models before machines boot, and lists what they have.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::pull::batches::{CatalogError, request_every_model, request_models};
use super::terminal::escape;
use super::{ReportResult, fetch_log, runtime, stdout};
use crate::base::error_chain::chain;
use crate::cli::WarmArgs;
use crate::fetch::cache::Cache;
use crate::fetch::error::Problem;
use crate::fetch::event::Events;
use crate::fetch::http::Http;
use crate::fetch::model::{Listing, Model};
use crate::fetch::tokens::Tokens;
use crate::fetch::warm::{Content, look, warm};

/// Files at a time.
const PARALLEL: usize = 4;
/// Time to wait for the catalog.
const WAIT: Duration = Duration::from_secs(60);

/// Runs the command and prints a line for each model and cache; returns the exit status.
///
/// # Errors
/// No runtime, no list of models, or a [`StdoutError`](super::stdout::StdoutError).
pub(crate) fn run(args: &WarmArgs) -> ReportResult {
    let runtime = runtime().map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(async {
        let events = Events::new(|event| fetch_log::log(&event));
        let http = Http::new(Tokens::from_env(&events), events.clone())?;
        let caches: Vec<_> = args.cache.iter().map(|url| Arc::new(Cache::new(url.clone(), events.clone()))).collect();
        let listing = list(&http, args)
            .await
            .map_err(|error| format!("cannot get the models from the catalog: {}", chain(&error)))?;
        let (mut rows, mut failed) = (Vec::new(), false);
        for (id, problem) in &listing.missing {
            failed = true;
            rows.push(format!("missing\t-\t{}\t{}", escape(id), escape(&problem.text())));
        }
        for cache in &caches {
            let found =
                futures_util::stream::iter(&listing.models).map(|model| visit(&http, cache, model, args.dry_run));
            let found: Vec<_> = found.buffered(PARALLEL).collect().await;
            for (model, found) in listing.models.iter().zip(found) {
                failed |= matches!(found, Err(_) | Ok(Content::Wrong | Content::Absent));
                rows.push(row(cache, model, found));
            }
        }
        stdout::print(&(rows.join("\n") + "\n"))?;
        Ok(u8::from(failed))
    })
}

async fn visit(http: &Http, cache: &Arc<Cache>, model: &Model, dry_run: bool) -> Result<Content, Problem> {
    if dry_run { look(http, cache, model).await } else { warm(http, cache, model).await }
}

fn row(cache: &Cache, model: &Model, found: Result<Content, Problem>) -> String {
    let (state, reason) = match found {
        Ok(Content::Cached) => ("cached", String::new()),
        Ok(Content::Fetched) => ("fetched", String::new()),
        Ok(Content::Absent) => ("absent", String::new()),
        Ok(Content::Unhashed) => ("skipped", "\tit has no SHA-256".into()),
        Ok(Content::Wrong) => ("wrong", "\tits bytes do not match the hash: remove its entry from the cache".into()),
        Err(problem) => ("failed", format!("\t{}", escape(&problem.text()))),
    };
    format!("{state}\t{}\t{}{reason}", cache.name(), escape(&model.id))
}

/// The models with these ids and their dependencies, or all of them.
async fn list(http: &Http, args: &WarmArgs) -> Result<Listing, CatalogError> {
    if args.ids.is_empty() {
        request_every_model(http, &args.catalog_url).await
    } else {
        request_models(http, &args.catalog_url, &args.ids, WAIT).await
    }
}
