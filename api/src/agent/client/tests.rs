//! The client against a small server on a real socket.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;
use crate::error::ErrorCode;
use crate::id::Epoch;
use crate::name::Digest;

type Blobs = Arc<std::sync::Mutex<HashMap<String, Bytes>>>;

/// Accepts connections at `path` until it is dropped; counts them.
struct Server {
    connections: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
    path: PathBuf,
}

async fn answer(request: Request<Incoming>, blobs: Blobs) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reply = |status: u16, body: Vec<u8>| {
        Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
    };
    let path = head.uri.path();
    match (head.method.as_str(), path) {
        ("POST", "/v1/desired") => {
            let DesiredMessage::Heartbeat { epoch, version } = serde_json::from_slice(&body).unwrap() else {
                return reply(
                    400,
                    serde_json::to_vec(&ApiError::new(ErrorCode::Invalid, "only heartbeats")).unwrap(),
                );
            };
            let ack =
                DesiredAck { epoch: Some(epoch), version, need_snapshot: false, missing_blobs: Vec::new() };
            reply(200, serde_json::to_vec(&ack).unwrap())
        }
        ("GET", "/v1/node") => reply(500, b"no json".to_vec()),
        ("GET", "/v1/instances") => reply(200, vec![b' '; LIST_LIMIT + 1]),
        ("GET", "/v1/logs") => reply(200, head.uri.query().unwrap_or_default().as_bytes().to_vec()),
        ("GET", "/v1/events") => {
            reply(200, b"\n{\"type\":\"heartbeat\",\"seq\":7}\n\n{\"type\":\"hea".to_vec())
        }
        ("PUT", _) => {
            blobs.lock().unwrap().insert(path.to_owned(), body);
            reply(204, Vec::new())
        }
        _ => match blobs.lock().unwrap().get(path) {
            Some(bytes) => reply(200, bytes.to_vec()),
            None => {
                reply(404, serde_json::to_vec(&ApiError::new(ErrorCode::NotFound, "no such blob")).unwrap())
            }
        },
    }
}

impl Server {
    fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, blobs) = (connections.clone(), Blobs::default());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let blobs = blobs.clone();
                served.spawn(async move {
                    let service = service_fn(move |request| answer(request, blobs.clone()));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { connections, tasks, path: path.to_owned() }
    }

    async fn stop(mut self) {
        self.tasks.shutdown().await;
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn setup() -> (tempfile::TempDir, PathBuf, AgentClient) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let client = AgentClient::new(AgentAddress::Unix(path.clone()), None).unwrap();
    (dir, path, client)
}

#[tokio::test]
async fn small_requests_share_a_connection_and_outlive_it() {
    let (_dir, path, client) = setup();
    let heartbeat = DesiredMessage::Heartbeat { epoch: Epoch::new(), version: 3 };
    assert!(matches!(client.desired(&heartbeat).await, Err(ClientError::Connect { .. })));
    let server = Server::start(&path);
    for _ in 0..3 {
        assert_eq!(client.desired(&heartbeat).await.unwrap().version, 3);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    server.stop().await;
    let server = Server::start(&path);
    assert_eq!(client.desired(&heartbeat).await.unwrap().version, 3, "the dead connection is replaced");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn refusals_say_why_and_sizes_are_bounded() {
    let (_dir, path, client) = setup();
    let _server = Server::start(&path);
    let snapshot = DesiredMessage::Snapshot { epoch: Epoch::new(), version: 1, instances: Vec::new() };
    let Err(ClientError::Refused { status: 400, source, .. }) = client.desired(&snapshot).await else {
        panic!("not refused")
    };
    assert_eq!(source.message, "only heartbeats");
    assert!(matches!(client.node().await, Err(ClientError::Unexplained { status: 500, .. })));
    assert!(matches!(client.instances().await, Err(ClientError::TooLarge { .. })));
}

#[tokio::test]
async fn blobs_travel_as_files_within_their_cap() {
    let (dir, path, client) = setup();
    let _server = Server::start(&path);
    let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&from, &content).unwrap();
    assert!(!client.has_blob(&digest).await.unwrap());
    assert!(client.get_blob(&digest, &to, 1).await.is_err());
    client.put_blob(&digest, &from).await.unwrap();
    assert!(client.has_blob(&digest).await.unwrap());
    let result = client.get_blob(&digest, &to, 1000).await;
    assert!(matches!(result, Err(ClientError::TooLarge { limit: 1000, .. })));
    assert!(!to.exists(), "nothing is left of a failed transfer");
    assert_eq!(client.get_blob(&digest, &to, content.len() as u64).await.unwrap(), content.len() as u64);
    assert_eq!(std::fs::read(&to).unwrap(), content);
    assert!(matches!(client.get_blob(&digest, &to, u64::MAX).await, Err(ClientError::File { .. })));
}

#[tokio::test]
async fn streams_end_with_the_agent_and_pass_no_torn_line() {
    let (_dir, path, client) = setup();
    let _server = Server::start(&path);
    let mut events = client.events(Some(3)).await.unwrap();
    assert_eq!(events.next().await.unwrap(), Some(crate::agent::AgentEvent::Heartbeat { seq: 7 }));
    assert_eq!(events.next().await.unwrap(), None);
    let mut logs = client.logs(Some("a b")).await.unwrap();
    assert_eq!(logs.next().await.unwrap(), None, "a line without its end is not a line");
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn identity(&self, trusts: &Self) -> Identity {
        let (certificate, key) = self.issue();
        Identity { certificate: certificate.into(), key: key.into(), ca: trusts.issuer.pem().into() }
    }
}

#[tokio::test]
async fn only_certificates_of_the_own_authority_are_believed_on_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (certificate, key) = ours.issue();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ours.issuer.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = service_fn(|request| answer(request, Blobs::default()));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    });
    let address: AgentAddress = format!("https://localhost:{port}").parse().unwrap();
    assert!(matches!(AgentClient::new(address.clone(), None), Err(ClientError::NoIdentity { .. })));
    let heartbeat = DesiredMessage::Heartbeat { epoch: Epoch::new(), version: 1 };
    let ask = async |identity: Identity| {
        AgentClient::new(address.clone(), Some(&identity)).unwrap().desired(&heartbeat).await
    };
    assert_eq!(ask(ours.identity(&ours)).await.unwrap().version, 1);
    assert!(ask(theirs.identity(&ours)).await.is_err(), "a stranger's client certificate");
    assert!(ask(ours.identity(&theirs)).await.is_err(), "a server that the CA does not know");
}
