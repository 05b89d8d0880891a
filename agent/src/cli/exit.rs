//! Exit statuses, and how every failure becomes one of them and a message.

use std::{fmt::Display, process::ExitCode};

use crate::{
    api::{client::ClientError, server::ServerError, wire::ApiError},
    config::ConfigError,
};

/// What `tipstaff` exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked.
    Ok = 0,
    /// It was tried and did not work.
    Failed = 1,
    /// Wrong usage or bad input.
    Usage = 2,
    /// A policy or a permission of the agent's denies it.
    Denied = 3,
    /// It works, and something that a live session asked for is not in force, or records were lost.
    Degraded = 4,
    /// There is no such session.
    NotFound = 5,
    /// This host or this user cannot.
    Unable = 6,
    /// No agent answers.
    Unreachable = 7,
    /// `run`: Tipstaff's own failure or refusal; the command was not run.
    OwnFailure = 125,
    /// `run`: the command is there and cannot be executed.
    NotExecutable = 126,
    /// `run`: there is no such command.
    CommandNotFound = 127,
}

impl Exit {
    /// The same under `run`, where everything below 125 belongs to the command.
    #[must_use]
    pub fn under_run(self) -> Self {
        match self {
            Self::NotExecutable | Self::CommandNotFound => self,
            _ => Self::OwnFailure,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A verb that did not work: what to say and what to exit with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// Lower case, no full stop, names file, value and remedy.
    pub message: String,
}

impl Failure {
    /// A failure of anything that can be shown.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Api(error) => return error.clone().into(),
            ClientError::Permission { .. } | ClientError::NotRoot { .. } => Exit::Unable,
            ClientError::Missing { .. }
            | ClientError::Stale { .. }
            | ClientError::Connect { .. }
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. }
            | ClientError::Closed { .. } => Exit::Unreachable,
            ClientError::Answer { .. } => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match &error {
            ApiError::NotFound { .. } => Exit::NotFound,
            ApiError::BadRequest { .. } | ApiError::BadPolicy { .. } => Exit::Usage,
            ApiError::Refused { .. } | ApiError::Member {} | ApiError::Denied { .. } => Exit::Denied,
            ApiError::Unavailable { .. } => Exit::Unable,
            ApiError::Busy { .. } => Exit::Unreachable,
            ApiError::Failed { .. } => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let exit = match &error {
            ConfigError::NoCgroup2 | ConfigError::Mounts(_) => Exit::Unable,
            _ => Exit::Usage,
        };
        Self::new(exit, error)
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let exit = match &error {
            ServerError::PathTooLong { .. } => Exit::Usage,
            ServerError::NotASocket { .. } | ServerError::Directory { .. } | ServerError::System { .. } => Exit::Unable,
            ServerError::InUse { .. } => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(error: impl Into<Failure>) -> u8 {
        error.into().exit as u8
    }

    #[test]
    fn every_failure_has_its_documented_status() {
        let path = || "/run/tipstaff/read.sock".into();
        let text = String::new;
        assert_eq!(exit_of(ClientError::Missing { path: path() }), 7);
        assert_eq!(exit_of(ClientError::Stale { path: path() }), 7);
        assert_eq!(exit_of(ClientError::Permission { path: path() }), 6);
        assert_eq!(exit_of(ClientError::NotRoot { path: path(), uid: 7 }), 6);
        assert_eq!(exit_of(ClientError::Api(ApiError::NotFound { message: text() })), 5);
        assert_eq!(exit_of(ApiError::BadRequest { message: text() }), 2);
        assert_eq!(exit_of(ApiError::BadPolicy { problems: Vec::new() }), 2);
        assert_eq!(exit_of(ApiError::Refused { message: text(), rule: None, remedy: text() }), 3);
        assert_eq!(exit_of(ApiError::Member {}), 3);
        assert_eq!(exit_of(ApiError::Unavailable { control: text(), message: text() }), 6);
        assert_eq!(exit_of(ApiError::Failed { message: text() }), 1);
        assert_eq!(exit_of(ConfigError::NoCgroup2), 6);
        assert_eq!(exit_of(ConfigError::EmptyPath { origin: text() }), 2);
    }

    #[test]
    fn under_run_only_the_shells_two_statuses_stay() {
        let statuses = [Exit::Failed, Exit::Usage, Exit::Unreachable, Exit::NotExecutable, Exit::CommandNotFound];
        assert_eq!(statuses.map(|exit| exit.under_run() as u8), [125, 125, 125, 126, 127]);
    }

    #[test]
    fn a_refusal_names_rule_and_remedy() {
        let refused = ApiError::Refused {
            message: "/usr/bin/curl is outside the scope of policy p".to_owned(),
            rule: Some("no-curl".to_owned()),
            remedy: "allow it in scope.exec".to_owned(),
        };
        let expected = "/usr/bin/curl is outside the scope of policy p (rule no-curl); allow it in scope.exec";
        assert_eq!(Failure::from(refused).message, expected);
    }
}
