//! Commands to try on a running server, printed for people who start one in a terminal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::oneshot;
use tracing::warn;

use super::models_table::{ModelsTable, ServedError, require_served};
use super::stdout;
use crate::base::error_chain::chain;
use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::Store;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::session;

/// Time between two checks for the first catalog. A store notifies nobody: requests only read it.
const READY_POLL: Duration = Duration::from_millis(10);

/// Waits for the first catalog.
pub(crate) async fn first_snapshot(store: &Store) -> Arc<Snapshot> {
    loop {
        if let Some(snapshot) = store.load().as_ref() {
            return Arc::clone(snapshot);
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

/// Bytes of an id that need an escape in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Prints how to migrate `database` if it is not migrated, and commands to try when there is a catalog. The loader
/// reports a database that can't be reached.
pub(crate) async fn announce(address: SocketAddr, store: &Store, database: &DatabaseConfig) {
    if let Some(Err(ServedError::NoView)) = served(database).await {
        let text = format!(
            "\nThe database of DATABASE_URL is not migrated. In another terminal, with the same DATABASE_URL, this \
             creates the\nschema model_catalog and, if you have no view of your own, the table public.models:\n\n  \
             {} migrate\n\nThe server continues by itself.\n\n",
            program()
        );
        print(text).await;
    }
    let snapshot = first_snapshot(store).await;
    let ids = ids(&snapshot);
    if ids.is_empty() {
        let text = format!(
            "\nmodel-catalog serves http://{address}. The catalog has no model yet: insert rows, or import \
             a file:\n\n  {} import FILE\n\n",
            program()
        );
        return print(text).await;
    }
    // The rows of that table can be changed by an example.
    let changes = matches!(served(database).await, Some(Ok(_)));
    print(commands(address, &ids, changes.then_some("$DATABASE_URL"))).await;
}

/// Prints a text on a thread of its own. That of the caller handles signals, so a reader of standard output that does
/// not read must not block it.
pub(crate) async fn print(text: String) {
    let (done, printed) = oneshot::channel();
    let print = move || drop(done.send(stdout::print(&text)));
    let printed = match std::thread::Builder::new().name("examples".into()).spawn(print) {
        Ok(_) => printed.await.unwrap_or(Ok(())).map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = printed {
        warn!(error, "cannot print the commands to try");
    }
}

/// The commands. `connection` is where psql can change the table of models, if the catalog is a table.
pub(crate) fn commands<Id: AsRef<str>>(address: SocketAddr, ids: &[Id], connection: Option<&str>) -> String {
    let ids = ids.iter().map(AsRef::as_ref);
    let Some(first) = ids.clone().next() else { return String::new() };
    let list: Vec<_> = ids.chain(["no-such-model"]).map(|id| format!("\"{id}\"")).collect();
    let requests = format!(
        "\nmodel-catalog serves http://{address}. Try:\n\n  \
         curl http://{address}/api/models/{}\n  \
         curl -d '{{\"model_ids\":[{}]}}' http://{address}/api/models/batch\n",
        utf8_percent_encode(first, SEGMENT),
        list.join(",")
    );
    let change = match connection {
        Some(connection) => format!(
            "  psql \"{connection}\" -c \"UPDATE models SET description = 'changed just now' WHERE id = '{first}'\"\n\n\
             and the first command again: it shows the change.\n\n"
        ),
        None => "\nChange a row of your tables, and the next request shows it.\n\n".to_owned(),
    };
    requests + &change
}

/// Up to two ids that a shell, SQL and JSON read without escapes.
fn ids(snapshot: &Snapshot) -> Vec<&str> {
    let plain = |id: &&str| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/:@+".contains(&byte));
    snapshot.iter().filter_map(|entry| str::from_utf8(entry.id()).ok()).filter(plain).take(2).collect()
}

/// The name by which this program was started.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| env!("CARGO_PKG_NAME").into())
}

/// Whether the view reads public.models, if the database can be reached.
async fn served(database: &DatabaseConfig) -> Option<Result<ModelsTable, ServedError>> {
    let client = session::connect(database).await.ok()?;
    Some(require_served(&client).await)
}
