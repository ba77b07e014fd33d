//! `signup, login, logout, whoami`.

use anyhow::Result;
use clap::Args;
use mogok_api::control::{Account, Credentials as Body, Session};
use mogok_api::error::ErrorCode;

use crate::context::Context;
use crate::credentials::{Credentials, Entry};
use crate::password;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Your e-mail address; asked for when absent. The password comes from MOGOK_PASSWORD, the
    /// terminal or standard input
    #[arg(env = "MOGOK_EMAIL")]
    email: Option<String>,
}

pub(crate) fn signup(context: &Context, args: Login) -> Result<()> {
    open_session(context, args, "/v1/signup", true)
}

pub(crate) fn login(context: &Context, args: Login) -> Result<()> {
    open_session(context, args, "/v1/login", false)
}

fn open_session(context: &Context, args: Login, path: &str, new: bool) -> Result<()> {
    let email = match args.email {
        Some(email) => email,
        None => password::ask("E-mail: ")?,
    };
    let body = Body { email: email.clone(), password: password::read(new)? };
    let session: Session = context.anonymous().post(path, &body)?;
    let entry = Entry { email: session.account.email.clone(), token: session.token };
    Credentials::load()?.set(&context.api, Some(entry))?;
    let done = if new { "signed up and logged in" } else { "logged in" };
    context.output.show(&session.account, |account| format!("{done} as {}", account.email))
}

pub(crate) fn logout(context: &Context) -> Result<()> {
    // A token that the platform no longer knows is as good as revoked.
    match context.client()?.post_empty("/v1/logout") {
        Err(error) if error.code() != Some(ErrorCode::Unauthorized) => return Err(error.into()),
        _ => {}
    }
    Credentials::load()?.set(&context.api, None)?;
    context.output.show(&serde_json::json!({ "logged_out": true }), |_| "logged out".to_owned())
}

pub(crate) fn whoami(context: &Context) -> Result<()> {
    let account: Account = context.client()?.get("/v1/whoami")?;
    let plan = serde_json::to_value(account.plan)?;
    context.output.show(&account, |account| {
        format!("{} ({} plan) on {}", account.email, plan.as_str().unwrap_or_default(), context.api)
    })
}
