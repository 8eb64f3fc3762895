//! The HTTP client of everything that downloads: files on GPU machines, and snapshots of upstreams.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

/// Time to establish a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Without certificates http still works, so this is only a warning.
#[derive(Debug, thiserror::Error)]
#[error("the certificates in CURL_CA_BUNDLE, {}, cannot be read, so https will fail", .path.display())]
pub(crate) struct NoCertificates {
    path: PathBuf,
    source: pem::Error,
}

/// A client that trusts the certificates of this system, or those in `CURL_CA_BUNDLE` or `SSL_CERT_FILE`, as curl and
/// OpenSSL do. Without any, http still works, and https fails with an error about the certificate. Redirects send no
/// `Referer`: the query of a URL may be a signature.
pub(crate) fn builder() -> Result<(ClientBuilder, Option<NoCertificates>), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let (roots, problem) = roots();
    let client = Client::builder()
        .tls_backend_preconfigured(versions.with_root_certificates(roots).with_no_client_auth())
        .connect_timeout(CONNECT_TIMEOUT)
        .referer(false)
        .user_agent(concat!("model-catalog/", env!("CARGO_PKG_VERSION")));
    Ok((client, problem))
}

fn roots() -> (RootCertStore, Option<NoCertificates>) {
    let mut store = RootCertStore::empty();
    let Some(path) = std::env::var_os("CURL_CA_BUNDLE").filter(|path| !path.is_empty()) else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return (store, None);
    };
    match CertificateDer::pem_file_iter(&path) {
        Ok(certificates) => {
            store.add_parsable_certificates(certificates.flatten());
            (store, None)
        }
        Err(source) => (store, Some(NoCertificates { path: path.into(), source })),
    }
}
