//! TLS to Postgres, as libpq understands `sslmode` and `sslrootcert`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How much a connection demands of TLS. `prefer` and `require` encrypt and look at no certificate, unless a root
/// certificate is given: then `require` is `verify-ca`, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Never.
    Disable,
    /// If the server can.
    Prefer,
    /// Always.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for this very host.
    VerifyFull,
}

impl std::str::FromStr for Mode {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        Ok(match text {
            "disable" => Self::Disable,
            // libpq's `allow` tries without first; what it lets through is the same.
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return Err(TlsError::Mode(text.into())),
        })
    }
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No mode of this name.
    #[error("sslmode `{0}` is unknown: use disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// A mode that verifies, and nothing to verify with.
    #[error("sslmode verify-ca and verify-full need sslrootcert: the file of the authority's certificate, or `system`")]
    NoRoot,
    /// The file of the root certificate can't be used.
    #[error("sslrootcert {}: {reason}", path.display())]
    Root {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refused its own settings.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The connector for a mode. `root` is a file of PEM certificates, or `system` for this machine's own.
///
/// # Errors
/// See [`TlsError`].
pub fn connector(mode: Mode, root: Option<&str>) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mode = if mode == Mode::Require && root.is_some() { Mode::VerifyCa } else { mode };
    let verifier: Arc<dyn ServerCertVerifier> = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => {
            Arc::new(Lenient { provider: Arc::clone(&provider), chain: None })
        }
        Mode::VerifyCa | Mode::VerifyFull => {
            let roots = Arc::new(roots(root.ok_or(TlsError::NoRoot)?)?);
            let strict = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            let strict = strict.map_err(|error| rustls::Error::General(error.to_string()))?;
            if mode == Mode::VerifyFull {
                strict
            } else {
                Arc::new(Lenient { provider: Arc::clone(&provider), chain: Some(strict) })
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn roots(root: &str) -> Result<RootCertStore, TlsError> {
    let path = Path::new(root);
    let failed = |reason: String| TlsError::Root { path: path.into(), reason };
    let mut store = RootCertStore::empty();
    if root == "system" {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            store.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    if store.is_empty() { Err(failed("it has no certificate".into())) } else { Ok(store) }
}

/// Looks at less than a browser would: at the chain alone (verify-ca) or at nothing (prefer, require).
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The verifier looks at the chain first and at the name last, so a wrong name means a good chain.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
