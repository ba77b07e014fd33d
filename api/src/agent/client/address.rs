//! Where an agent is, and who the caller is to it: `unix:/path`, guarded by the file system, or
//! `https://host:port` with certificates on both sides. A value that exists is complete: an `https`
//! endpoint without an identity cannot be made.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// An agent's address as the operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentAddress {
    /// `unix:/run/mogok/agent.sock`
    Unix(PathBuf),
    /// `https://app1.example:7400`
    Https { host: String, port: u16 },
}

/// An address that is neither form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid agent address {0:?}: expected unix:/absolute/path or https://host:port")]
pub struct InvalidAddress(String);

impl FromStr for AgentAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into())).ok_or_else(invalid);
        }
        let authority = text.strip_prefix("https://").ok_or_else(invalid)?;
        let (host, port) = authority.trim_end_matches('/').rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host).map_err(|_| invalid())?;
        Ok(Self::Https { host: host.to_owned(), port })
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// What the control plane shows an agent, and whom it believes: PEM, as read from the files.
#[derive(Clone)]
pub struct Identity {
    /// The client certificate and its chain.
    pub certificate: Vec<u8>,
    /// The private key of the certificate.
    pub key: Vec<u8>,
    /// The authorities that sign agents' certificates.
    pub ca: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// An identity that TLS cannot use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read the {what} as PEM")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("cannot use the certificate authorities")]
    Authorities(#[source] rustls::client::VerifierBuilderError),
    #[error("cannot use the {what}")]
    Refused { what: &'static str, source: rustls::Error },
}

impl Identity {
    /// The TLS settings: this certificate is shown, the server's must be signed by the CA and name the host.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let pem = |what| move |source| IdentityError::Pem { what, source };
        let refused = |what| move |source| IdentityError::Refused { what, source };
        let certificates = |what, bytes: &[u8]| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
            CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(pem(what))
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("CA certificate", &self.ca)? {
            roots.add(authority).map_err(refused("CA certificate"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(IdentityError::Authorities)?;
        let chain = certificates("client certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(pem("client key"))?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused("TLS protocol versions"))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(refused("client certificate"))?;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_they_were_read() {
        for good in ["unix:/run/a.sock", "https://app1.example:7400", "https://10.0.0.1:1", "https://[::1]:9"]
        {
            assert_eq!(good.parse::<AgentAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "unix:", "unix:relative", "http://a:1", "https://a", "https://a:b", "https://a b:1"] {
            assert!(bad.parse::<AgentAddress>().is_err(), "{bad}");
        }
    }
}
