//! How an agent is told what to do: the command line, over a TOML file of the same names where one is
//! given. [`Settings`] is what people write, [`Config`] what the agent goes by: complete and checked.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use mogok_api::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::ledger::uids::RANGE;
use crate::network::{Egress, InvalidSubnet, NetworkConfig, Subnet, name};

/// `sun_path` has 108 bytes (unix(7)); behind the state directory come
/// `/instances/<36 characters>/shim.sock` and the closing NUL.
const STATE_DIR_BYTES: usize = 108 - 58;

/// A setting that the agent cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings {path} are not as they should be", path = path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{0} is not set: give --{0}")]
    Missing(&'static str),
    #[error("the state directory {path} has a longer path than {STATE_DIR_BYTES} bytes: sockets below it could not be addressed", path = .0.display())]
    StateDirTooLong(PathBuf),
    #[error("{path} is not an absolute path", path = .0.display())]
    Relative(PathBuf),
    #[error("--tls-listen needs --tls-cert, --tls-key and --tls-client-ca")]
    Tls,
    #[error("invalid port range {0:?}: expected FIRST-LAST, for example 20000-29999")]
    Ports(String),
    #[error(transparent)]
    Pool(#[from] InvalidSubnet),
    #[error(
        "--uid-base {0}: expected a multiple of {RANGE} that is not 0, so that no container has the ids of the host's users, and leaves room for one range"
    )]
    UidBase(u32),
    #[error("--uid-ranges 0: no container could be given user ids")]
    NoUidRanges,
    #[error("the agent's own program has no path")]
    Program(#[source] std::io::Error),
}

/// Settings as people write them, on the command line and in the file; what is given on the command line
/// wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// TOML file with these same settings
    #[arg(long)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of the agent's own state
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// Directory of images, packages and other blobs
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// Directory of base images, which several agents may share [default: the store]
    #[arg(long)]
    pub image_store: Option<PathBuf>,
    /// Unix socket to serve the API on
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Address to serve the API on to clients with a certificate
    #[arg(long)]
    pub tls_listen: Option<SocketAddr>,
    /// PEM file: the server's certificate and its chain
    #[arg(long)]
    pub tls_cert: Option<PathBuf>,
    /// PEM file: the key of the certificate
    #[arg(long)]
    pub tls_key: Option<PathBuf>,
    /// PEM file: the CA whose clients are let in
    #[arg(long)]
    pub tls_client_ca: Option<PathBuf>,
    /// User id, beside 0, that may use the socket (repeatable)
    #[arg(long = "allow-uid")]
    pub allow_uid: Vec<u32>,
    /// Path of mogok-shim [default: beside this program]
    #[arg(long)]
    pub shim: Option<PathBuf>,
    /// Network that containers get their addresses from [default: 10.88.0.0/16]
    #[arg(long)]
    pub pool: Option<Subnet>,
    /// Host ports that are forwarded to containers [default: 20000-29999]
    #[arg(long)]
    pub port_range: Option<String>,
    /// What containers may reach [default: deny]
    #[arg(long, value_name = "deny|internet", value_parser = egress)]
    pub egress: Option<Egress>,
    /// ADDRESS:PORT that builds may reach whatever the egress policy is (repeatable)
    #[arg(long = "build-grant")]
    pub build_grant: Vec<SocketAddrV4>,
    /// Mbit/s that a container may send, and as many that it may receive [default: 1000]
    #[arg(long, value_name = "MBIT")]
    pub bandwidth: Option<NonZeroU32>,
    /// How many connections a container may have opened at once [default: 4096]
    #[arg(long)]
    pub connections: Option<NonZeroU32>,
    /// DNS server that containers ask, whatever the egress policy is (repeatable, 3 at most) [default: the
    /// host's under internet, none under deny]
    #[arg(long)]
    pub resolver: Vec<Ipv4Addr>,
    /// Name of the cgroup that holds all containers [default: mogok]
    #[arg(long)]
    pub cgroup: Option<String>,
    /// Cgroup of the v2 tree that the containers' one lies in, for example / or a delegated unit's
    /// [default: the agent's own]
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    /// Id of this node [default: made at the first start]
    #[arg(long)]
    pub node_id: Option<NodeId>,
    /// First user id that containers are mapped to [default: 268435456]
    #[arg(long)]
    pub uid_base: Option<u32>,
    /// How many ranges of 65,536 user ids there are [default: 16384]
    #[arg(long)]
    pub uid_ranges: Option<u32>,
}

impl Settings {
    /// These settings, and below them those of the file they name.
    ///
    /// # Errors
    /// When the file cannot be read or has unknown settings.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let file: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse { path, source })?;
        Ok(self.over(file))
    }

    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            state_dir: self.state_dir.or(file.state_dir),
            store: self.store.or(file.store),
            image_store: self.image_store.or(file.image_store),
            socket: self.socket.or(file.socket),
            tls_listen: self.tls_listen.or(file.tls_listen),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            allow_uid: if self.allow_uid.is_empty() { file.allow_uid } else { self.allow_uid },
            shim: self.shim.or(file.shim),
            pool: self.pool.or(file.pool),
            port_range: self.port_range.or(file.port_range),
            egress: self.egress.or(file.egress),
            build_grant: if self.build_grant.is_empty() { file.build_grant } else { self.build_grant },
            bandwidth: self.bandwidth.or(file.bandwidth),
            connections: self.connections.or(file.connections),
            resolver: if self.resolver.is_empty() { file.resolver } else { self.resolver },
            cgroup: self.cgroup.or(file.cgroup),
            cgroup_parent: self.cgroup_parent.or(file.cgroup_parent),
            node_id: self.node_id.or(file.node_id),
            uid_base: self.uid_base.or(file.uid_base),
            uid_ranges: self.uid_ranges.or(file.uid_ranges),
        }
    }
}

/// Certificates of the TLS listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub listen: SocketAddr,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

/// One container cannot use up the link of a node, which has 10 Gbit/s in most data centres.
fn default_bandwidth() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(999)
}

/// No container can fill the host's connection table, which has 65,536 places or more.
fn default_connections() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(4095)
}

/// Descriptors of an agent beside those for its containers: connections, execs, starts under way.
pub const OWN_DESCRIPTORS: u64 = 512;
/// Descriptors for each container: links, watches of its limits, its shim and its log. Eight on a hybrid host, and some more
/// while it is new.
pub const DESCRIPTORS_EACH: u64 = 12;

/// The part of the configuration that what exists on the host was made by; kept so that a purge finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSettings {
    pub pool: Subnet,
    /// First and last.
    pub ports: (u16, u16),
    pub egress: Egress,
    pub build_grants: Vec<SocketAddrV4>,
    /// Mbit/s.
    #[serde(default = "default_bandwidth")]
    pub bandwidth: NonZeroU32,
    #[serde(default = "default_connections")]
    pub connections: NonZeroU32,
    #[serde(default)]
    pub resolvers: Vec<Ipv4Addr>,
    pub cgroup: String,
    /// Where `cgroup` lies on a unified host; the agent's own cgroup where absent.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
}

impl HostSettings {
    /// What the network is made by. Its table is named as the cgroup is.
    #[must_use]
    pub fn network(&self, state_dir: &Path) -> NetworkConfig {
        NetworkConfig {
            pool: self.pool,
            ports: self.ports,
            egress: self.egress,
            build_grants: self.build_grants.clone(),
            bandwidth: self.bandwidth,
            connections: self.connections,
            resolvers: self.resolvers.clone(),
            table: name::table(&self.cgroup),
            state_dir: state_dir.to_owned(),
        }
    }
}

/// What the agent goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub state_dir: PathBuf,
    pub store: PathBuf,
    pub image_store: PathBuf,
    pub socket: PathBuf,
    pub tls: Option<TlsFiles>,
    pub allow_uids: Vec<u32>,
    pub shim: PathBuf,
    pub host: HostSettings,
    pub node_id: Option<NodeId>,
    pub uid_base: u32,
    pub uid_ranges: u32,
}

impl Config {
    /// # Errors
    /// The first setting that is missing or makes no sense.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        let settings = settings.with_file()?;
        let state_dir = state_dir(settings.state_dir)?;
        let tls = match (settings.tls_listen, settings.tls_cert, settings.tls_key, settings.tls_client_ca) {
            (None, None, None, None) => None,
            (Some(listen), Some(cert), Some(key), Some(client_ca)) => {
                Some(TlsFiles { listen, cert, key, client_ca })
            }
            _ => return Err(ConfigError::Tls),
        };
        let shim = match settings.shim {
            Some(shim) => absolute(shim)?,
            None => std::env::current_exe().map_err(ConfigError::Program)?.with_file_name("mogok-shim"),
        };
        let store = absolute(settings.store.ok_or(ConfigError::Missing("store"))?)?;
        Ok(Self {
            state_dir,
            image_store: settings.image_store.map_or_else(|| Ok(store.clone()), absolute)?,
            store,
            socket: absolute(settings.socket.ok_or(ConfigError::Missing("socket"))?)?,
            tls,
            allow_uids: settings.allow_uid,
            shim,
            host: HostSettings {
                pool: settings.pool.map_or_else(|| "10.88.0.0/16".parse(), Ok)?,
                ports: port_range(settings.port_range.as_deref().unwrap_or("20000-29999"))?,
                egress: settings.egress.unwrap_or(Egress::Deny),
                build_grants: settings.build_grant,
                bandwidth: settings.bandwidth.unwrap_or(default_bandwidth()),
                connections: settings.connections.unwrap_or(default_connections()),
                resolvers: settings.resolver,
                cgroup: settings.cgroup.unwrap_or_else(|| "mogok".to_owned()),
                cgroup_parent: settings.cgroup_parent,
            },
            node_id: settings.node_id,
            uid_base: uid_base(settings.uid_base.unwrap_or(1 << 28))?,
            uid_ranges: settings.uid_ranges.map_or(Ok(1 << 14), |ranges| {
                if ranges > 0 { Ok(ranges) } else { Err(ConfigError::NoUidRanges) }
            })?,
        })
    }

    /// Instances that the node can hold at once, with `open_files` as its limit of those.
    #[must_use]
    pub fn max_instances(&self, open_files: u64) -> u32 {
        let open = open_files.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_EACH;
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        self.host.network(&self.state_dir).capacity().min(self.uid_ranges).min(open)
    }
}

/// A state directory whose sockets can be addressed.
///
/// # Errors
/// When it is missing, relative or too long.
pub fn state_dir(path: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let path = absolute(path.ok_or(ConfigError::Missing("state-dir"))?)?;
    // By one name only: what runs is known by its path.
    let path = resolved(&path);
    if path.as_os_str().len() > STATE_DIR_BYTES {
        return Err(ConfigError::StateDirTooLong(path));
    }
    Ok(path)
}

/// Without symbolic links, also where the last names are not there yet.
fn resolved(path: &Path) -> PathBuf {
    match (std::fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(path), ..) => path,
        (Err(_), Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    // Without a trailing slash, so that paths built on it compare as text.
    if path.is_absolute() { Ok(path.components().collect()) } else { Err(ConfigError::Relative(path)) }
}

fn egress(text: &str) -> Result<Egress, String> {
    match text {
        "deny" => Ok(Egress::Deny),
        "internet" => Ok(Egress::Internet),
        _ => Err("expected deny or internet".to_owned()),
    }
}

/// A multiple, so that ranges of one configuration and of the next are the same or have nothing in common.
fn uid_base(base: u32) -> Result<u32, ConfigError> {
    let last = u32::MAX / RANGE * RANGE;
    if base > 0 && base < last && base.is_multiple_of(RANGE) {
        Ok(base)
    } else {
        Err(ConfigError::UidBase(base))
    }
}

fn port_range(text: &str) -> Result<(u16, u16), ConfigError> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (first > 0 && first <= last).then_some((first, last))
    });
    parsed.ok_or_else(|| ConfigError::Ports(text.chars().take(40).collect()))
}

/// The file in which [`HostSettings`] are kept.
#[must_use]
pub fn host_settings_file(state_dir: &Path) -> PathBuf {
    state_dir.join("host.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            state_dir: Some("/var/lib/m/".into()),
            store: Some("/var/lib/s".into()),
            socket: Some("/run/m.sock".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(
            &file,
            "store = \"/file\"\nport-range = \"30000-30009\"\nbuild-grant = [\"10.0.0.1:80\"]\n\
             resolver = [\"10.0.0.53\"]\nbandwidth = 250\nconnections = 100\n",
        )
        .unwrap();
        let config = Config::new(Settings { config: Some(file.clone()), ..settings() }).unwrap();
        assert_eq!(config.store, Path::new("/var/lib/s"));
        assert_eq!(config.state_dir.as_os_str(), "/var/lib/m");
        assert_eq!((config.host.ports, config.max_instances(20_000)), ((30000, 30009), 10));
        assert_eq!(config.host.build_grants, ["10.0.0.1:80".parse().unwrap()]);
        assert_eq!(config.host.resolvers, [Ipv4Addr::new(10, 0, 0, 53)]);
        assert_eq!((config.host.bandwidth.get(), config.host.connections.get()), (250, 100));
        std::fs::write(&file, "stores = \"/x\"\n").unwrap();
        assert!(matches!(
            Config::new(Settings { config: Some(file), ..settings() }),
            Err(ConfigError::Parse { .. })
        ));
    }

    /// A purge goes by what an earlier agent wrote.
    #[test]
    fn what_an_earlier_agent_kept_is_read() {
        let host = Config::new(settings()).unwrap().host;
        let mut earlier = serde_json::to_value(&host).unwrap();
        for field in ["bandwidth", "connections", "resolvers", "cgroup_parent"] {
            assert!(earlier.as_object_mut().unwrap().remove(field).is_some());
        }
        assert_eq!(serde_json::from_value::<HostSettings>(earlier).unwrap(), host);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            Config::new(settings).unwrap_err()
        };
        assert!(matches!(refused(|s| s.state_dir = None), ConfigError::Missing("state-dir")));
        assert!(matches!(refused(|s| s.state_dir = Some("x".into())), ConfigError::Relative(_)));
        let long = |s: &mut Settings| s.state_dir = Some(format!("/{}", "x".repeat(50)).into());
        assert!(matches!(refused(long), ConfigError::StateDirTooLong(_)));
        assert!(matches!(refused(|s| s.tls_cert = Some("/x".into())), ConfigError::Tls));
        for ports in ["", "1", "2-1", "0-5", "1-70000"] {
            assert!(port_range(ports).is_err(), "{ports}");
        }
        for base in [0, 1000, RANGE + 1, u32::MAX, u32::MAX / RANGE * RANGE] {
            assert!(matches!(uid_base(base), Err(ConfigError::UidBase(_))), "{base}");
        }
        assert_eq!(uid_base(RANGE).unwrap(), RANGE);
        assert!(matches!(refused(|s| s.uid_ranges = Some(0)), ConfigError::NoUidRanges));
    }
}
