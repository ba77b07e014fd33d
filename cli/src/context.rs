//! Which platform, which account, which app: from options, environment, files and the git remote,
//! in this order.

use anyhow::{Context as _, Result, bail};
use mogok_api::control::client::Client;
use mogok_api::name::AppName;

use crate::command::Global;
use crate::credentials::{Credentials, Entry};
use crate::git;
use crate::output::Output;

const DEFAULT_API: &str = "http://api.mogok.localhost:8080";

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) api: String,
    pub(crate) output: Output,
    app: Option<AppName>,
    entry: Option<Entry>,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self> {
        let api = api_url(global.api.as_deref())?;
        let entry = match std::env::var("MOGOK_TOKEN") {
            Ok(token) if !token.is_empty() => Some(Entry { email: String::new(), token }),
            _ => Credentials::load()?.get(&api).cloned(),
        };
        Ok(Self { api, output: Output { json: global.json }, app: global.app.clone(), entry })
    }

    /// A client with the account's token.
    pub(crate) fn client(&self) -> Result<Client> {
        let Some(entry) = &self.entry else {
            bail!("you are not logged in to {}: run 'mogok login' or 'mogok signup'", self.api)
        };
        Ok(Client::new(&self.api, Some(entry.token.clone())))
    }

    /// A client for calls that need no account.
    pub(crate) fn anonymous(&self) -> Client {
        Client::new(&self.api, None)
    }

    pub(crate) fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// The app that `--app`, `MOGOK_APP` or the git remote names.
    pub(crate) fn app(&self) -> Result<AppName> {
        if let Some(app) = &self.app {
            return Ok(app.clone());
        }
        let url = git::remote_url().context(
            "no app given: use --app NAME, or run this in a repository that has a git remote 'mogok' \
             ('mogok create NAME' adds it)",
        )?;
        git::app_of(&url)
    }
}

/// The API's URL. A remote `mogok` of this repository names its platform: `git.` becomes `api.`.
fn api_url(option: Option<&str>) -> Result<String> {
    let url = match option {
        Some(url) => url.to_owned(),
        None => {
            git::remote_url().as_deref().and_then(api_of_remote).unwrap_or_else(|| DEFAULT_API.to_owned())
        }
    };
    let parsed = url::Url::parse(&url).with_context(|| format!("invalid API URL {url:?}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        bail!("invalid API URL {url:?}: expected http://HOST[:PORT] or https://HOST[:PORT]");
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn api_of_remote(remote: &str) -> Option<String> {
    let url = url::Url::parse(remote).ok()?;
    let base = url.host_str()?.strip_prefix("git.")?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    matches!(url.scheme(), "http" | "https").then(|| format!("{}://api.{base}{port}", url.scheme()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_names_its_platform() {
        assert_eq!(
            api_of_remote("http://git.mogok.localhost:8080/fugafuga.git").as_deref(),
            Some("http://api.mogok.localhost:8080")
        );
        assert_eq!(
            api_of_remote("https://git.example.com/x.git").as_deref(),
            Some("https://api.example.com")
        );
        assert_eq!(api_of_remote("git@example.com:x.git"), None);
    }

    #[test]
    fn an_api_url_must_be_http() {
        assert!(api_url(Some("ftp://x")).is_err());
        assert!(api_url(Some("nonsense")).is_err());
        assert_eq!(api_url(Some("http://127.0.0.1:1/")).unwrap(), "http://127.0.0.1:1");
    }
}
