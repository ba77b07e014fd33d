//! The text itself, for the nginx of Debian 12 (1.22) and later. It stays in the foreground,
//! as a supervisor wants it. Every path is directly in the state directory, which nginx itself
//! would not make.

use std::fmt;

use super::NginxConfig;
use crate::gate::MAX_HEAD;

/// The router keeps its side of an idle connection for 75 s, so that nginx closes first and no
/// request meets a closing connection.
const UPSTREAM_KEEPALIVE: &str = "30s";
/// The largest upload to an app.
const MAX_BODY: &str = "1g";

impl fmt::Display for NginxConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { router, control_plane, base_domain, state, tls, user, .. } = self;
        writeln!(f, "# Written by mogok-router nginx-config; change its arguments, not this file.")?;
        if let Some(user) = user {
            writeln!(f, "user {user};")?;
        }
        write!(
            f,
            r"daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
pid {state}/nginx.pid;
error_log {state}/error.log warn;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
    client_body_temp_path {state}/client_body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    types {{ }}
    default_type application/octet-stream;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    client_header_timeout 30s;
    client_body_timeout 60s;
    send_timeout 60s;
    client_max_body_size {MAX_BODY};
    # Every head that the router would take, in whatever lines; a larger one is its to refuse, up to twice that.
    large_client_header_buffers 2 {MAX_HEAD};
    server_names_hash_bucket_size 512;
    reset_timedout_connection on;

    # Everything goes on as it comes, both ways.
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_max_temp_file_size 0;
    proxy_buffer_size 32k;
    proxy_buffers 8 32k;
    proxy_busy_buffers_size 64k;
    proxy_connect_timeout 5s;
    proxy_next_upstream off;
    proxy_intercept_errors off;

    # A client's own words about where it comes from are replaced.
    proxy_set_header Host $http_host;
    proxy_set_header Connection $mogok_connection;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Host '';
    proxy_set_header X-Forwarded-Server '';
    proxy_set_header X-Forwarded-Scheme '';
    proxy_set_header X-Forwarded-Ssl '';
    proxy_set_header X-Real-IP '';
    proxy_set_header Forwarded '';
    proxy_set_header Proxy '';
    map $http_upgrade $mogok_connection {{
        default upgrade;
        '' '';
    }}

    upstream mogok_router {{
        server {router} max_fails=0;
        keepalive 128;
        keepalive_timeout {UPSTREAM_KEEPALIVE};
    }}
    upstream mogok_control_plane {{
        server {control_plane} max_fails=0;
        keepalive 16;
        keepalive_timeout {UPSTREAM_KEEPALIVE};
    }}
"
        )?;
        if let Some(tls) = tls {
            write!(
                f,
                r"
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:mogok:10m;
    ssl_session_tickets off;
",
                certificate = tls.certificate,
                key = tls.key,
            )?;
        }
        // Git and the API: whole repositories up, log streams down for as long as they are watched.
        writeln!(f, "\n    server {{")?;
        self.listens(f, "")?;
        write!(
            f,
            r"        server_name api.{base_domain} git.{base_domain};
        # The control plane counts by itself: its refusal is one that git shows.
        client_max_body_size 0;
        location / {{
            proxy_pass http://mogok_control_plane;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
            client_body_timeout 10m;
            send_timeout 10m;
        }}
"
        )?;
        own_pages(f)?;
        writeln!(
            f,
            "    }}\n\n    # Apps, and hosts that no app has: the router tells them apart.\n    server {{"
        )?;
        self.listens(f, " default_server")?;
        write!(
            f,
            r"        server_name *.{base_domain} {base_domain} _;
        location / {{
            proxy_pass http://mogok_router;
            # Longer than the router's own times, so that its pages are the ones seen.
            proxy_read_timeout 75s;
            proxy_send_timeout 75s;
        }}
"
        )?;
        own_pages(f)?;
        writeln!(f, "    }}\n}}")
    }
}

impl NginxConfig {
    fn listens(&self, f: &mut fmt::Formatter<'_>, suffix: &str) -> fmt::Result {
        writeln!(f, "        listen {}{suffix};", self.listen)?;
        match &self.tls {
            Some(tls) => writeln!(f, "        listen {} ssl http2{suffix};", tls.listen),
            None => Ok(()),
        }
    }
}

/// What is seen while the router or the control plane is down, and of requests that nginx refuses before anybody
/// else has read them; pages of router, control plane and apps pass unchanged. The latter have a path for a page:
/// nginx takes no named location for a request that it could not read the path of.
fn own_pages(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        r#"        error_page 400 405 411 414 494 497 501 505 =400 /__mogok/refused;
        error_page 413 =413 /__mogok/too-large;
        location = /__mogok/refused {
            default_type 'text/html; charset=utf-8';
            add_header X-Mogok-Error H26 always;
            add_header Cache-Control no-store always;
            return 400 '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The request is malformed or too large</title></head>\n<body><h1>The request is malformed or too large.</h1><p>Its address, cookies and other headers may have 32 KiB together: delete the cookies of this site, or send less in the address.</p><p>Code: H26</p></body></html>\n';
        }
        location = /__mogok/too-large {
            default_type 'text/html; charset=utf-8';
            add_header X-Mogok-Error H26 always;
            add_header Cache-Control no-store always;
            return 413 '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The request is too large</title></head>\n<body><h1>The request is too large.</h1><p>A request may have 1 GiB: send less, or in parts.</p><p>Code: H26</p></body></html>\n';
        }
        error_page 502 504 @platform;
        location @platform {
            internal;
            default_type 'text/html; charset=utf-8';
            add_header X-Mogok-Error H99 always;
            add_header Cache-Control no-store always;
            return 502 '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>The platform could not handle the request</title></head>\n<body><h1>The platform could not handle the request.</h1><p>Code: H99</p></body></html>\n';
        }
"#,
    )
}
