//! The settings of the control plane, from the command line or `MOGOK_*` variables, and the public
//! URLs that follow from them. Parsed once at the start; everything behind it trusts them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use mogok_api::agent::client::AgentAddress;
use mogok_api::name::AppName;

use crate::build::BuildSettings;
use crate::store::Store;

/// What `mogok-control-plane run` is told.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Directory of everything the control plane keeps on disk (repositories, logs, blobs, SQLite)
    #[arg(long, env = "MOGOK_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Address of the public listener (API and git), behind the front proxy
    #[arg(long, env = "MOGOK_LISTEN", default_value = "127.0.0.1:7080")]
    pub listen: SocketAddr,
    /// Unix socket for routers
    #[arg(long, env = "MOGOK_NODE_SOCKET")]
    pub node_socket: PathBuf,
    /// Group that may use the node socket, by name; the control plane's own where absent
    #[arg(long, env = "MOGOK_NODE_SOCKET_GROUP")]
    pub node_socket_group: Option<String>,
    /// Domain below which apps, `api` and `git` live
    #[arg(long, env = "MOGOK_BASE_DOMAIN", default_value = "mogok.localhost")]
    pub base_domain: Domain,
    /// Port under which visitors reach the platform
    #[arg(long, env = "MOGOK_PUBLIC_PORT", default_value_t = 8080)]
    pub public_port: u16,
    /// Scheme under which visitors reach the platform
    #[arg(long, env = "MOGOK_PUBLIC_SCHEME", value_enum, default_value_t = Scheme::Http)]
    pub public_scheme: Scheme,
    /// Database, `sqlite:PATH?mode=rwc` or `postgres://...`; an SQLite file in the state directory where absent
    #[arg(long, env = "MOGOK_DATABASE")]
    pub database: Option<String>,
    /// An agent of the platform, `unix:/PATH` or `https://HOST:PORT`; may be given several times
    #[arg(long = "agent", env = "MOGOK_AGENTS", value_delimiter = ',')]
    pub agents: Vec<AgentAddress>,
    /// PEM file: the certificate that `https` agents are shown, with its chain
    #[arg(long, env = "MOGOK_AGENT_CERT", requires = "agent_key")]
    pub agent_cert: Option<PathBuf>,
    /// PEM file: the key of that certificate
    #[arg(long, env = "MOGOK_AGENT_KEY", requires = "agent_ca")]
    pub agent_key: Option<PathBuf>,
    /// PEM file: the authorities that sign the certificates of `https` agents
    #[arg(long, env = "MOGOK_AGENT_CA", requires = "agent_cert")]
    pub agent_ca: Option<PathBuf>,
    /// URL of the gem mirror that builds use
    #[arg(long, env = "MOGOK_GEM_MIRROR")]
    pub gem_mirror: Option<String>,
    /// Bytes that one git push may have
    #[arg(long, env = "MOGOK_PUSH_LIMIT_BYTES", default_value_t = 1 << 30)]
    pub push_limit_bytes: u64,
    #[command(flatten)]
    pub builds: BuildSettings,
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// A domain name in lower case, without port and final dot (RFC 1123, section 2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

/// A text that is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid domain {0:?}: use labels of letters, digits and hyphens, for example mogok.example.com")]
pub struct InvalidDomain(String);

impl FromStr for Domain {
    type Err = InvalidDomain;
    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() > 200 || !text.split('.').all(label) {
            return Err(InvalidDomain(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl Domain {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Config {
    /// `http://LABEL.<base domain>[:PORT]`; the scheme's own port is left out.
    #[must_use]
    pub fn public_url(&self, label: &str) -> String {
        let own = match self.public_scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        let port = if self.public_port == own { String::new() } else { format!(":{}", self.public_port) };
        format!("{}://{label}.{}{port}", self.public_scheme, self.base_domain)
    }

    /// Where visitors reach the app.
    #[must_use]
    pub fn app_url(&self, app: &AppName) -> String {
        self.public_url(app.as_str())
    }

    /// Where the app's developer pushes to.
    #[must_use]
    pub fn git_url(&self, app: &AppName) -> String {
        format!("{}/{app}.git", self.public_url("git"))
    }

    /// Host name of the app, lower case, without port.
    #[must_use]
    pub fn app_host(&self, app: &AppName) -> String {
        format!("{app}.{}", self.base_domain)
    }

    /// The database's URL.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.database.clone().unwrap_or_else(|| Store::sqlite_url(&self.state_dir.join("mogok.db")))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    fn config(more: &[&str]) -> Config {
        let base = ["x", "--state-dir", "/s", "--node-socket", "/s/node.sock"];
        Line::try_parse_from(base.iter().chain(more)).unwrap().config
    }

    #[test]
    fn urls_leave_the_usual_port_out() {
        let app = "fugafuga".parse().unwrap();
        let http = config(&["--base-domain", "Mogok.Localhost", "--public-port", "8080"]);
        assert_eq!(http.app_url(&app), "http://fugafuga.mogok.localhost:8080");
        assert_eq!(http.git_url(&app), "http://git.mogok.localhost:8080/fugafuga.git");
        let https = config(&["--public-scheme", "https", "--public-port", "443"]);
        assert_eq!(https.app_url(&app), "https://fugafuga.mogok.localhost");
    }

    #[test]
    fn domains_are_parsed_at_the_edge() {
        for bad in ["", "a..b", "-a.b", "a b", "a/b", "a:80"] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
