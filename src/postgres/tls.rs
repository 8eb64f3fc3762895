//! TLS to Postgres, with the semantics that libpq gives to `sslmode` and `sslrootcert`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
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
    /// The authorities of the system with a mode that does not check the name.
    #[error("sslrootcert=system needs sslmode=verify-full, because anybody can get a certificate of these authorities")]
    WeakMode,
    /// A client certificate without its key.
    #[error("sslcert needs sslkey, the file with its private key")]
    NoKey,
    /// Not a version of TLS that is supported.
    #[error("{0} must be TLSv1.2 or TLSv1.3")]
    Version(&'static str),
    /// A file can't be used.
    #[error("{setting} {}: {reason}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// rustls rejected its configuration.
    #[error("TLS")]
    Rustls(#[from] rustls::Error),
}

impl TlsError {
    /// The setting that it is about.
    pub(super) fn setting(&self) -> &'static str {
        match self {
            Self::Mode(_) | Self::NoRoot | Self::WeakMode | Self::Rustls(_) => "sslmode",
            Self::NoKey => "sslcert",
            Self::Version(setting) | Self::File { setting, .. } => setting,
        }
    }

    fn file(setting: &'static str, path: &Path, reason: &impl ToString) -> Self {
        Self::File { setting, path: path.into(), reason: reason.to_string() }
    }
}

/// The settings of TLS besides the mode.
pub(super) struct TlsFiles {
    /// `sslrootcert`: a file of PEM certificates, or `system` for those that the operating system trusts.
    pub(super) root: Option<String>,
    /// `sslcrl`
    pub(super) crl: Option<String>,
    /// `sslcert`
    pub(super) certificate: Option<String>,
    /// `sslkey`
    pub(super) key: Option<String>,
    /// `sslsni`: whether the host name is sent in plain text.
    pub(super) sni: bool,
    /// `ssl_min_protocol_version`
    pub(super) min_version: Option<String>,
    /// `ssl_max_protocol_version`
    pub(super) max_version: Option<String>,
}

/// A connector for a mode, and whether it verifies certificates.
pub(super) fn connector(mode: Mode, files: &TlsFiles) -> Result<(MakeRustlsConnect, bool), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let policy = match mode {
        Mode::Disable | Mode::Prefer | Mode::Require => None,
        Mode::VerifyCa | Mode::VerifyFull => {
            let (roots, pinned) = load_roots(files.root.as_deref().ok_or(TlsError::NoRoot)?)?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let chain = chain.with_crls(load_revoked(files.crl.as_deref())?).build();
            let chain = chain.map_err(|error| rustls::Error::General(error.to_string()))?;
            Some(TrustPolicy { chain, pinned, verify_name: mode == Mode::VerifyFull })
        }
    };
    let verifies = policy.is_some();
    let verifier = Arc::new(LibpqVerifier { provider: Arc::clone(&provider), policy });
    let identity = load_identity(files, &provider)?;
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions(files)?)?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => config.with_no_client_auth(),
    };
    config.enable_sni = files.sni;
    // Required by sslnegotiation=direct.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok((MakeRustlsConnect::new(config), verifies))
}

static ONLY_TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
static ONLY_TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The versions of TLS that may be used. rustls has none before 1.2.
fn versions(files: &TlsFiles) -> Result<&'static [&'static SupportedProtocolVersion], TlsError> {
    let (min, max) = (files.min_version.as_deref(), files.max_version.as_deref());
    let known = ["TLSv1.2", "TLSv1.3"];
    if min.is_some_and(|version| !["TLSv1", "TLSv1.1"].contains(&version) && !known.contains(&version)) {
        return Err(TlsError::Version("ssl_min_protocol_version"));
    }
    if max.is_some_and(|version| !known.contains(&version)) || (min, max) == (Some("TLSv1.3"), Some("TLSv1.2")) {
        return Err(TlsError::Version("ssl_max_protocol_version"));
    }
    Ok(match (min, max) {
        (Some("TLSv1.3"), _) => ONLY_TLS13,
        (_, Some("TLSv1.2")) => ONLY_TLS12,
        _ => rustls::ALL_VERSIONS,
    })
}

/// The certificates of `root`, and those among them that a server may present as its own.
fn load_roots(root: &str) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let path = Path::new(root);
    let (mut store, mut pinned) = (RootCertStore::empty(), Vec::new());
    if root == "system" {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        for certificate in load_pem::<CertificateDer<'_>>("sslrootcert", path)? {
            store.add(certificate.clone()).map_err(|error| TlsError::file("sslrootcert", path, &error))?;
            pinned.push(certificate);
        }
    }
    if store.is_empty() {
        return Err(TlsError::file("sslrootcert", path, &"it contains no certificate"));
    }
    Ok((store, pinned))
}

/// The lists of revoked certificates; none without a file. If there is one, a certificate without a list is refused.
fn load_revoked(path: Option<&str>) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let Some(path) = path.map(Path::new) else { return Ok(Vec::new()) };
    let lists: Vec<_> = load_pem("sslcrl", path)?;
    if lists.is_empty() {
        return Err(TlsError::file("sslcrl", path, &"it contains no certificate revocation list"));
    }
    Ok(lists)
}

fn load_pem<T: PemObject>(setting: &'static str, path: &Path) -> Result<Vec<T>, TlsError> {
    let failed = |error: rustls::pki_types::pem::Error| TlsError::file(setting, path, &error);
    T::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// The certificates and the key that authenticate this client.
fn load_identity(files: &TlsFiles, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, TlsError> {
    let Some(certificate) = files.certificate.as_deref().map(Path::new) else { return Ok(None) };
    let key = Path::new(files.key.as_deref().ok_or(TlsError::NoKey)?);
    let chain: Vec<_> = load_pem("sslcert", certificate)?;
    if chain.is_empty() {
        return Err(TlsError::file("sslcert", certificate, &"it contains no certificate"));
    }
    let failed = |reason: &dyn ToString| TlsError::file("sslkey", key, &reason.to_string());
    let metadata = std::fs::metadata(key).map_err(|error| failed(&error))?;
    // As libpq: root's key may be readable by a group, of which this process is a member.
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(failed(&"others may read it: run chmod 0600, or 0640 if root owns it"));
    }
    let text = std::fs::read(key).map_err(|error| failed(&error))?;
    if String::from_utf8_lossy(&text).contains("ENCRYPTED") {
        return Err(failed(&"it is encrypted, which is not supported: `openssl pkey -in KEY -out NEW` decrypts it"));
    }
    let der = PrivateKeyDer::from_pem_slice(&text).map_err(|error| failed(&error))?;
    let identity =
        CertifiedKey::new(chain, provider.key_provider.load_private_key(der).map_err(|error| failed(&error))?);
    // Not other errors: rustls cannot parse certificates of X.509 version 1, which `openssl x509 -req` may make.
    match identity.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(failed(&"it is not the key of sslcert"))
        }
        _ => Ok(Some(identity)),
    }
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
