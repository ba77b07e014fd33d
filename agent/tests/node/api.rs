//! Who may talk to the agent, and what it answers to nonsense.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use mogok_api::agent::client::{AgentClient, Identity};
use mogok_api::error::{ApiError, ErrorCode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::exec;
use crate::host::{Host, instance, on_a_node, on_a_node_with};

/// Sends a request over the socket as another user; the status and the body.
fn curl(host: &Host, uid: u32, arguments: &[&str]) -> (String, String) {
    let answer = Command::new("curl")
        .args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}"])
        .arg("--unix-socket")
        .arg(host.dir().join("agent.sock"))
        .args(arguments)
        .uid(uid)
        .output()
        .unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn nonsense_is_refused_in_the_words_of_the_contract() {
    on_a_node(async |host| {
        let refused = |arguments: &[&str]| {
            let (status, body) = curl(host, 0, arguments);
            let error: ApiError = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status} {body}"));
            assert_eq!(status, error.code.status().to_string());
            error.code
        };
        let id = instance("").id;
        let json = "content-type: application/json";
        let digest = format!("http://agent/v1/blobs/sha256:{}", "0".repeat(64));
        assert_eq!(refused(&["http://agent/v2"]), ErrorCode::NotFound);
        assert_eq!(refused(&[&format!("http://agent/v1/instances/{id}")]), ErrorCode::NotFound);
        assert_eq!(refused(&[&format!("http://agent/v1/instances/{id}/logs")]), ErrorCode::NotFound);
        assert_eq!(refused(&["http://agent/v1/instances/web.1"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/logs?after=x"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/logs?folow=true"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/events?after=x"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/desired", "-H", json, "-d", "{}"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/blobs/md5:0"]), ErrorCode::Invalid);
        assert_eq!(refused(&[&digest]), ErrorCode::NotFound);
        assert_eq!(refused(&[&digest, "-X", "DELETE"]), ErrorCode::NotFound);
        assert_eq!(refused(&[&digest, "-X", "PUT", "-d", "other bytes"]), ErrorCode::Invalid);
        assert_eq!(refused(&["http://agent/v1/node", "-X", "DELETE"]), ErrorCode::Invalid);
    });
}

#[test]
fn only_root_and_who_was_named_may_use_the_socket() {
    on_a_node_with(&["--allow-uid", "4711"], async |host| {
        std::fs::set_permissions(host.dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(curl(host, 0, &["http://agent/v1/node"]).0, "200");
        assert_eq!(curl(host, 4711, &["http://agent/v1/node"]).0, "200");
        assert_eq!(curl(host, 4712, &["http://agent/v1/node"]).0, "000");
    });
}

#[test]
fn without_named_users_the_socket_is_roots() {
    on_a_node(async |host| {
        std::fs::set_permissions(host.dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let mode = std::fs::metadata(host.dir().join("agent.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(curl(host, 4711, &["http://agent/v1/node"]).0, "000");
    });
}

/// A CA, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, PEM.
    fn signed(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

#[test]
fn over_tls_only_clients_of_the_ca_are_let_in() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_string_lossy().into_owned()
    };
    let (cert, key) = ours.signed("localhost");
    let (cert, key, ca) = (write("cert", &cert), write("key", &key), write("ca", &ours.0.pem()));
    let arguments =
        ["--tls-listen", "127.0.0.1:7400", "--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca];
    on_a_node_with(&arguments, async move |host| {
        let client = |authority: &Authority| {
            let (certificate, key) = authority.signed("control-plane");
            let ca = ours.0.pem().into_bytes();
            let identity = Identity { certificate: certificate.into_bytes(), key: key.into_bytes(), ca };
            AgentClient::new("https://localhost:7400".parse().unwrap(), Some(&identity)).unwrap()
        };
        assert_eq!(client(&ours).instances().await.unwrap(), []);
        assert!(client(&theirs).instances().await.is_err(), "signed by somebody else");
        let plain = Command::new("curl")
            .args(["--silent", "--insecure", "--max-time", "10", "https://localhost:7400/v1/node"])
            .output()
            .unwrap();
        assert!(!plain.status.success() && plain.stdout.is_empty(), "no certificate at all");
        // Programs that join have their streams over it as well.
        host.client = client(&ours);
        let id = exec::idle(host).await.id;
        let printed = exec::run(host, id, "head -c 3000000 /dev/zero | tr '\\0' x; echo").await;
        assert!(printed.len() == 3_000_001 && printed.bytes().all(|byte| matches!(byte, b'x' | b'\n')));
    });
}
