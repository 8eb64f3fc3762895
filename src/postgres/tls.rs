//! TLS to Postgres, with the semantics that libpq gives to `sslmode` and `sslrootcert`.

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

/// What a connection requires of TLS. `prefer` and `require` encrypt without verifying the certificate. With a root
/// certificate, `require` means `verify-ca`, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No TLS.
    Disable,
    /// TLS if the server supports it.
    Prefer,
    /// TLS.
    Require,
    /// TLS with a certificate of a trusted authority.
    VerifyCa,
    /// TLS with a certificate of a trusted authority that is valid for the host name.
    VerifyFull,
}

impl std::str::FromStr for Mode {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        Ok(match text {
            "disable" => Self::Disable,
            // libpq's `allow` tries without TLS first; it accepts the same connections.
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
    /// Not the name of a mode.
    #[error("sslmode `{0}` is unknown: use disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// A mode that verifies certificates, without a root certificate.
    #[error("sslmode verify-ca and verify-full need sslrootcert: a file with the authority's certificate, or `system`")]
    NoRoot,
    /// The file of the root certificate can't be used.
    #[error("sslrootcert {}: {reason}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// rustls rejected its configuration.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A connector for a mode, and whether it verifies certificates. `root` is a file of PEM certificates, or `system` for
/// those that the operating system trusts.
///
/// # Errors
/// See [`TlsError`].
pub fn connector(mode: Mode, root: Option<&str>) -> Result<(MakeRustlsConnect, bool), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mode = if mode == Mode::Require && root.is_some() { Mode::VerifyCa } else { mode };
    let policy = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => None,
        Mode::VerifyCa | Mode::VerifyFull => {
            let (roots, pinned) = load_roots(root.ok_or(TlsError::NoRoot)?)?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
            let chain = chain.map_err(|error| rustls::Error::General(error.to_string()))?;
            Some(TrustPolicy { chain, pinned, verify_name: mode == Mode::VerifyFull })
        }
    };
    let verifies = policy.is_some();
    let verifier = Arc::new(LibpqVerifier { provider: Arc::clone(&provider), policy });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    Ok((MakeRustlsConnect::new(config), verifies))
}

/// The certificates of `root`, and those among them that a server may present as its own.
fn load_roots(root: &str) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let path = Path::new(root);
    let failed = |reason: String| TlsError::Root { path: path.into(), reason };
    let (mut store, mut pinned) = (RootCertStore::empty(), Vec::new());
    if root == "system" {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            store.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
            pinned.push(certificate);
        }
    }
    if store.is_empty() { Err(failed("it contains no certificate".into())) } else { Ok((store, pinned)) }
}

/// Verifies less than a browser: only the chain (verify-ca), or nothing (prefer, require).
#[derive(Debug)]
struct LibpqVerifier {
    provider: Arc<CryptoProvider>,
    policy: Option<TrustPolicy>,
}

/// Which server certificates are accepted.
#[derive(Debug)]
struct TrustPolicy {
    chain: Arc<WebPkiServerVerifier>,
    /// Certificates that are trusted themselves. The one that the PostgreSQL manual creates is self-signed.
    pinned: Vec<CertificateDer<'static>>,
    /// Whether the certificate must be valid for the host name.
    verify_name: bool,
}

impl ServerCertVerifier for LibpqVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(TrustPolicy { chain, pinned, verify_name }) = &self.policy else {
            return Ok(ServerCertVerified::assertion());
        };
        let verdict = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // The verifier checks the chain first and the name last, so with a wrong name the chain is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !verify_name => Ok(ServerCertVerified::assertion()),
            // It reports this, after the validity dates were checked, for a CA certificate that is presented by a
            // server. OpenSSL accepts one that is trusted itself.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
                if why.0.to_string() == "CaUsedAsEndEntity" && pinned.iter().any(|pinned| pinned == end_entity) =>
            {
                if *verify_name {
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
