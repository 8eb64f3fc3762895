//! TLS to Postgres, as libpq understands `sslmode` and `sslrootcert`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
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

/// The connector for a mode, and whether it verifies. `root` is a file of PEM certificates, or `system` for this machine's own.
///
/// # Errors
/// See [`TlsError`].
pub fn connector(mode: Mode, root: Option<&str>) -> Result<(MakeRustlsConnect, bool), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mode = if mode == Mode::Require && root.is_some() { Mode::VerifyCa } else { mode };
    let trusted = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => None,
        Mode::VerifyCa | Mode::VerifyFull => {
            let (roots, own) = roots(root.ok_or(TlsError::NoRoot)?)?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
            let chain = chain.map_err(|error| rustls::Error::General(error.to_string()))?;
            Some(Trusted { chain, own, name: mode == Mode::VerifyFull })
        }
    };
    let verifies = trusted.is_some();
    let verifier = Arc::new(LikeLibpq { provider: Arc::clone(&provider), trusted });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok((MakeRustlsConnect::new(config), verifies))
}

/// The certificates of `root`, and those of them that a server could show as its own.
fn roots(root: &str) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let path = Path::new(root);
    let failed = |reason: String| TlsError::Root { path: path.into(), reason };
    let (mut store, mut own) = (RootCertStore::empty(), Vec::new());
    if root == "system" {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            store.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
            own.push(certificate);
        }
    }
    if store.is_empty() { Err(failed("it has no certificate".into())) } else { Ok((store, own)) }
}

/// Looks at less than a browser would: at the chain alone (verify-ca) or at nothing (prefer, require).
#[derive(Debug)]
struct LikeLibpq {
    provider: Arc<CryptoProvider>,
    trusted: Option<Trusted>,
}

/// What a server's certificate is measured by.
#[derive(Debug)]
struct Trusted {
    chain: Arc<WebPkiServerVerifier>,
    /// Certificates that are trusted as they stand: the one that PostgreSQL's manual makes is signed by itself.
    own: Vec<CertificateDer<'static>>,
    /// Whether it must be for the very host.
    name: bool,
}

impl ServerCertVerifier for LikeLibpq {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(Trusted { chain, own, name }) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let verdict = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // The verifier looks at the chain first and at the name last, so a wrong name means a good chain.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !name => Ok(ServerCertVerified::assertion()),
            // It looks at the dates before this, which it says of an authority's certificate that is shown as a
            // server's. OpenSSL takes one that is trusted itself.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
                if why.0.to_string() == "CaUsedAsEndEntity" && own.iter().any(|trusted| trusted == end_entity) =>
            {
                if *name {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
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
