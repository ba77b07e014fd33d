//! Where everything of a one-host platform is, and the command line of each of its parts.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

/// The parts run in directories of their own, so no path may depend on this process's.
fn absolute(path: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

/// Options of the platform; each part is told only what concerns it.
#[derive(Debug, Args)]
pub(crate) struct Layout {
    /// Directory of everything that the platform keeps
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    state_dir: PathBuf,
    /// Store of base images, made by mogok-image; by default STATE/store
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    image_store: Option<PathBuf>,
    /// Directory of the programs; by default that of this one
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    bin_dir: Option<PathBuf>,
    /// Where nginx listens for visitors and developers
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub(crate) listen: SocketAddr,
    /// Where nginx listens for HTTPS, given a certificate
    #[arg(long, requires = "tls_certificate", value_name = "ADDR:PORT")]
    tls_listen: Option<SocketAddr>,
    /// Certificate chain (PEM)
    #[arg(long, requires = "tls_key", value_name = "FILE", value_parser = absolute)]
    tls_certificate: Option<PathBuf>,
    /// Private key (PEM)
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    tls_key: Option<PathBuf>,
    /// Apps are hosts below this domain
    #[arg(long, default_value = "mogok.localhost", value_name = "DOMAIN")]
    pub(crate) base_domain: String,
    /// Loopback address of the control plane, behind nginx
    #[arg(long, default_value = "127.0.0.1:7701", value_name = "ADDR:PORT")]
    control_plane_listen: SocketAddr,
    /// Loopback address of the router, behind nginx
    #[arg(long, default_value = "127.0.0.1:7702", value_name = "ADDR:PORT")]
    router_listen: SocketAddr,
    /// Addresses of containers; the first one is the node's gateway
    #[arg(long, default_value = "10.88.0.0/16", value_name = "CIDR")]
    pool: String,
    /// What apps may reach beyond their own services: deny or internet
    #[arg(long, default_value = "deny", value_parser = ["deny", "internet"])]
    egress: String,
    /// TOML file with settings of the agent that have no option here, for example bandwidth or resolver
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    agent_config: Option<PathBuf>,
    /// Static gem index that builds use instead of the public one, served on the gateway address
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    gem_index: Option<PathBuf>,
    /// Port of the gem index on the gateway address
    #[arg(long, default_value_t = 7703, value_name = "PORT")]
    gem_port: u16,
    /// Name of the platform's cgroup and nftables table
    #[arg(long, default_value = "mogok", value_name = "NAME")]
    name: String,
    /// User and group id of the parts that need no privilege
    #[arg(long, default_value_t = 64_100, value_name = "ID")]
    pub(crate) service_id: u32,
}

/// The parts, in the order in which they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Agent,
    ControlPlane,
    Router,
    Gems,
    Nginx,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::ControlPlane => "control-plane",
            Self::Router => "router",
            Self::Gems => "gems",
            Self::Nginx => "nginx",
        }
    }
}

/// What tells that a part is ready.
#[derive(Debug, Clone)]
pub(crate) enum Ready {
    /// The Unix socket accepts a connection.
    Socket(PathBuf),
    /// The address accepts a connection.
    Address(SocketAddr),
}

impl Layout {
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::Agent, Part::ControlPlane, Part::Router];
        if self.gem_index.is_some() {
            parts.push(Part::Gems);
        }
        parts.push(Part::Nginx);
        parts
    }

    pub(crate) fn dir(&self, part: Part) -> PathBuf {
        self.state_dir.join(part.name())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.state_dir.join("run")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.state_dir.join("store")
    }

    pub(crate) fn image_store(&self) -> PathBuf {
        self.image_store.clone().unwrap_or_else(|| self.store())
    }

    fn agent_socket(&self) -> PathBuf {
        self.run_dir().join("agent.sock")
    }

    fn node_socket(&self) -> PathBuf {
        self.dir(Part::ControlPlane).join("node.sock")
    }

    /// The path of one of the platform's programs.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let dir = match &self.bin_dir {
            Some(dir) => dir.clone(),
            None => std::env::current_exe()?.parent().map(Path::to_path_buf).unwrap_or_default(),
        };
        let path = dir.join(name);
        ensure!(
            path.is_file(),
            "{} is missing: build it, or name its directory with --bin-dir",
            path.display()
        );
        Ok(path)
    }

    /// The first address of the pool: the node's gateway, where the gem index listens.
    fn gateway(&self) -> Result<String> {
        let invalid = || format!("invalid --pool {:?}: expected A.B.C.D/LENGTH", self.pool);
        let (address, _) = self.pool.split_once('/').with_context(invalid)?;
        let address: std::net::Ipv4Addr = address.parse().with_context(invalid)?;
        Ok(std::net::Ipv4Addr::from(u32::from(address) + 1).to_string())
    }

    fn gem_address(&self) -> Result<SocketAddr> {
        Ok(format!("{}:{}", self.gateway()?, self.gem_port).parse()?)
    }

    /// Does the part start with root's privilege? nginx does for a port below 1024 and then drops it.
    pub(crate) fn privileged(&self, part: Part) -> bool {
        let low_port =
            self.listen.port() < 1024 || self.tls_listen.is_some_and(|listen| listen.port() < 1024);
        part == Part::Agent || (part == Part::Nginx && low_port)
    }

    /// Has the command run without privilege unless the part needs it.
    pub(crate) fn drop_privilege(&self, part: Part, command: &mut Command) {
        if !self.privileged(part) {
            command.uid(self.service_id).gid(self.service_id);
        }
    }

    pub(crate) fn ready(&self, part: Part) -> Result<Ready> {
        Ok(match part {
            Part::Agent => Ready::Socket(self.agent_socket()),
            Part::ControlPlane => Ready::Socket(self.node_socket()),
            Part::Router => Ready::Address(self.router_listen),
            Part::Gems => Ready::Address(self.gem_address()?),
            Part::Nginx => Ready::Address(self.listen),
        })
    }

    /// Every address that something of the platform listens on, with the name of the part and the option that
    /// moves it; the gem index's is on an address that exists only when the agent runs.
    pub(crate) fn addresses(&self) -> Vec<(&'static str, SocketAddr, &'static str)> {
        let mut addresses = vec![
            (Part::ControlPlane.name(), self.control_plane_listen, "--control-plane-listen"),
            (Part::Router.name(), self.router_listen, "--router-listen"),
            (Part::Nginx.name(), self.listen, "--listen"),
        ];
        addresses.extend(self.tls_listen.map(|listen| (Part::Nginx.name(), listen, "--tls-listen")));
        addresses
    }

    /// The command that starts a part.
    pub(crate) fn command(&self, part: Part) -> Result<Command> {
        match part {
            Part::Agent => self.agent(),
            Part::ControlPlane => self.control_plane(),
            Part::Router => self.router(),
            Part::Gems => Ok(nginx(&self.gems_configuration()?, &self.dir(part))),
            Part::Nginx => Ok(nginx(&self.nginx_configuration()?, &self.dir(part))),
        }
    }

    fn agent(&self) -> Result<Command> {
        let mut command = Command::new(self.program("mogok-agent")?);
        command
            .arg("run")
            .args(["--socket".as_ref(), self.agent_socket().as_os_str()])
            .args(["--allow-uid", &self.service_id.to_string()])
            .args(["--shim".as_ref(), self.program("mogok-shim")?.as_os_str()])
            .args(["--egress", &self.egress])
            .args(["--state-dir".as_ref(), self.dir(Part::Agent).as_os_str()])
            .args(["--store".as_ref(), self.store().as_os_str()])
            .args(["--image-store".as_ref(), self.image_store().as_os_str()])
            .args(["--pool", &self.pool])
            .args(["--cgroup", &self.name])
            // The supervisor and its parts share a cgroup that nobody delegated: on a unified host only
            // the root may hold processes and hand controllers to children.
            .args(["--cgroup-parent", "/"]);
        if let Some(file) = &self.agent_config {
            command.args(["--config".as_ref(), file.as_os_str()]);
        }
        if self.gem_index.is_some() {
            command.args(["--build-grant", &self.gem_address()?.to_string()]);
        }
        Ok(command)
    }

    /// The command that removes everything the agent has on the host.
    pub(crate) fn purge(&self) -> Result<Command> {
        let mut command = Command::new(self.program("mogok-agent")?);
        command.arg("purge").args(["--state-dir".as_ref(), self.dir(Part::Agent).as_os_str()]);
        Ok(command)
    }

    /// Scheme and port of the URLs that developers are shown.
    pub(crate) fn public(&self) -> (&'static str, u16) {
        self.tls_listen.map_or(("http", self.listen.port()), |listen| ("https", listen.port()))
    }

    fn control_plane(&self) -> Result<Command> {
        let mut command = Command::new(self.program("mogok-control-plane")?);
        command
            .arg("run")
            .args(["--state-dir".as_ref(), self.dir(Part::ControlPlane).as_os_str()])
            .args(["--listen", &self.control_plane_listen.to_string()])
            .args(["--node-socket".as_ref(), self.node_socket().as_os_str()])
            .args(["--base-domain", &self.base_domain])
            .args(["--public-port", &self.public().1.to_string()])
            .args(["--public-scheme", self.public().0])
            .arg("--agent")
            .arg(format!("unix:{}", self.agent_socket().display()));
        if self.gem_index.is_some() {
            command.arg("--gem-mirror").arg(format!("http://{}", self.gem_address()?));
        }
        Ok(command)
    }

    fn router(&self) -> Result<Command> {
        let mut command = Command::new(self.program("mogok-router")?);
        command
            .arg("run")
            .args(["--listen", &self.router_listen.to_string()])
            .arg("--control")
            .arg(format!("unix:{}", self.node_socket().display()))
            .args(["--state-dir".as_ref(), self.dir(Part::Router).as_os_str()])
            .args(["--base-domain", &self.base_domain]);
        Ok(command)
    }

    /// Has the router's own generator write nginx's configuration.
    fn nginx_configuration(&self) -> Result<PathBuf> {
        let dir = self.dir(Part::Nginx);
        let mut command = Command::new(self.program("mogok-router")?);
        command
            .arg("nginx-config")
            .args(["--listen", &self.listen.to_string()])
            .args(["--router", &self.router_listen.to_string()])
            .args(["--control-plane", &self.control_plane_listen.to_string()])
            .args(["--base-domain", &self.base_domain])
            .args(["--state-dir".as_ref(), dir.as_os_str()]);
        if let (Some(listen), Some(certificate), Some(key)) =
            (self.tls_listen, &self.tls_certificate, &self.tls_key)
        {
            command
                .args(["--tls-listen", &listen.to_string()])
                .args(["--tls-certificate".as_ref(), certificate.as_os_str()])
                .args(["--tls-key".as_ref(), key.as_os_str()]);
        }
        self.drop_privilege(Part::Nginx, &mut command);
        let output = command.output().context("cannot run mogok-router nginx-config")?;
        ensure!(
            output.status.success(),
            "mogok-router nginx-config failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        self.write_configuration(Part::Nginx, &output.stdout)
    }

    fn gems_configuration(&self) -> Result<PathBuf> {
        let dir = self.dir(Part::Gems);
        let index = self.gem_index.as_deref().context("no --gem-index")?.canonicalize()?;
        for path in [&dir, &index] {
            let text = path.to_string_lossy();
            ensure!(
                !text.contains(['"', '\\', '$', '\n', ';', '{', '}']),
                "{text:?} has characters that an nginx configuration cannot hold: use another directory"
            );
        }
        let (dir, index) = (dir.display(), index.display());
        let configuration = format!(
            "# Serves the static gem index to builds. Generated at every start.\n\
             daemon off;\npid \"{dir}/nginx.pid\";\nerror_log stderr warn;\nworker_processes 1;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  access_log off;\n  default_type application/octet-stream;\n  sendfile on;\n  \
             client_body_temp_path \"{dir}/body\";\n  proxy_temp_path \"{dir}/proxy\";\n  \
             fastcgi_temp_path \"{dir}/fastcgi\";\n  uwsgi_temp_path \"{dir}/uwsgi\";\n  \
             scgi_temp_path \"{dir}/scgi\";\n  \
             server {{\n    listen {};\n    root \"{index}\";\n    etag on;\n  }}\n}}\n",
            self.gem_address()?
        );
        self.write_configuration(Part::Gems, configuration.as_bytes())
    }

    fn write_configuration(&self, part: Part, text: &[u8]) -> Result<PathBuf> {
        // Not in the part's own directory: root must not write where another user could have put a link.
        let path = self.run_dir().join(format!("{}.conf", part.name()));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn nginx(configuration: &Path, dir: &Path) -> Command {
    let mut command = Command::new("nginx");
    command.args(["-c".as_ref(), configuration.as_os_str()]).args(["-p".as_ref(), dir.as_os_str()]);
    command.args(["-e", "stderr"]);
    command
}
