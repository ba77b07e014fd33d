//! A visitor of an app: one HTTP request to nginx with the app's host name.

use std::time::Duration;

use anyhow::{Context, Result};

/// The most of a body that is read, in bytes.
const MAX_BODY: u64 = 16 * 1024 * 1024;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// The first header of this name, in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The router's error code, `H10` and so on.
    #[must_use]
    pub fn error_code(&self) -> Option<&str> {
        self.header("x-mogok-error")
    }
}

/// A client with or without a kept-alive connection.
#[derive(Debug, Clone)]
pub struct Visitor {
    agent: ureq::Agent,
    address: String,
}

impl Visitor {
    /// `address` is nginx's `ADDR:PORT`.
    #[must_use]
    pub fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(Duration::from_secs(90)))
            .build();
        Self { agent: ureq::Agent::new_with_config(config), address: address.to_owned() }
    }

    /// `GET path` of `host`.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let mut request = self.agent.get(format!("http://{}{path}", self.address)).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.call().with_context(|| format!("no answer to GET {path} of {host}"))?)
    }

    /// `POST path` of `host` with a form.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn post_form(
        &self,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Result<Answer> {
        let mut request = self.agent.post(format!("http://{}{path}", self.address)).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = request.send_form(form.iter().copied());
        answer(sent.with_context(|| format!("no answer to POST {path} of {host}"))?)
    }
}

fn answer(response: ureq::http::Response<ureq::Body>) -> Result<Answer> {
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let body = response.into_body().with_config().limit(MAX_BODY).read_to_vec()?;
    Ok(Answer { status, headers, body: crate::program::text(&body) })
}
