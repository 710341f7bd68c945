//! The supervisor's half of the conversation with its gateway, and the reload of the config file.
//!
//! A closed list: what a gateway says out of its turn ends it. Called by the loop.

use std::time::Instant;

use sandbox::Signal;
use wire::control::{ToGateway, ToSupervisor};

use super::{AFTER_GRACE, Life, QUIET, Supervisor, welcome};
use crate::commands::Failure;
use crate::config;

impl Supervisor {
    /// What the gateway says; what isn't its turn to say ends it.
    pub(super) fn hear(&mut self) -> Result<(), Failure> {
        let Life::Runs(gateway) = &mut self.gateway else {
            return Ok(());
        };
        gateway.flush();
        let messages = match gateway.heard() {
            Ok(messages) => messages,
            Err(fault) => {
                self.distrust(&fault);
                return Ok(());
            }
        };
        if gateway.channel_fd().is_none() && self.kill_at.is_none() {
            // It ends, or it can't be reached any more.
            self.kill_at = Some(Instant::now() + AFTER_GRACE);
        }
        for message in messages {
            self.obey(message)?;
        }
        Ok(())
    }

    fn obey(&mut self, message: ToSupervisor) -> Result<(), Failure> {
        let Life::Runs(gateway) = &mut self.gateway else {
            return Ok(());
        };
        match message {
            ToSupervisor::Ready if !gateway.is_ready => {
                gateway.is_ready = true;
                self.is_ready();
            }
            ToSupervisor::Refused { text } if !gateway.is_ready => {
                if !self.is_welcomed {
                    return Err(Failure::new(text));
                }
                tracing::error!("the new gateway can't start: {text}");
            }
            ToSupervisor::Applied if self.asked.is_some() => {
                self.text = self.asked.take().unwrap_or_default();
                self.follow_kms();
                tracing::info!("{} is in force", self.config_path.display());
            }
            ToSupervisor::Refused { text } if self.asked.is_some() => {
                self.asked = None;
                tracing::error!(
                    "the config file is refused, the one before stays in force:\n{text}"
                );
            }
            ToSupervisor::NeedsGeneration { why } if self.asked.is_some() => {
                self.asked = None;
                tracing::warn!("the config file is good but not in force yet: {why}");
            }
            ToSupervisor::Certificate { chain } => {
                if let Err(fault) = self.folder.publish_certificate(&chain) {
                    tracing::error!("the certificate can't be published: {fault}");
                }
            }
            // The process ends next; its end is what counts.
            ToSupervisor::Drained if self.stops > 0 => {}
            // A gateway that failed while running says why before it ends.
            ToSupervisor::Refused { text } => tracing::error!("the gateway: {text}"),
            ToSupervisor::Ready
            | ToSupervisor::Applied
            | ToSupervisor::NeedsGeneration { .. }
            | ToSupervisor::Drained => self.distrust("it said what it wasn't asked"),
        }
        Ok(())
    }

    /// Starts, replaces or ends `guan-pkcs11` by the file that has just come into force.
    fn follow_kms(&mut self) {
        let read = super::start::judge(&self.folder, &self.config_path, &self.text);
        // The gateway has judged it by the same rules; what a file names may be gone in between.
        let kms = match read {
            Ok(config) => config.kms,
            Err(faults) => return tracing::error!("[kms] can't be followed: {faults}"),
        };
        if self.token.as_ref().is_some_and(|token| token.is_for(&kms)) {
            return;
        }
        self.token = None;
        match super::token::Token::start(&kms, &self.folder, Instant::now()) {
            Ok(token) => self.token = token,
            Err(failure) => tracing::error!("{failure}"),
        }
    }

    /// Ends a gateway that broke the rules of the channel; a new one follows.
    fn distrust(&mut self, why: &str) {
        tracing::error!("the gateway can't be trusted any more: {why}; it is replaced");
        if let Life::Runs(gateway) = &self.gateway
            && let Err(e) = gateway.child.kill(Signal::KILL)
        {
            tracing::error!("it can't be killed: {e}");
        }
    }

    /// A gateway serves.
    fn is_ready(&mut self) {
        if self.is_welcomed {
            tracing::info!("a new gateway serves");
            return;
        }
        self.is_welcomed = true;
        // The data door's file comes last: whoever finds it finds the others.
        for bound in self.doors.iter().rev() {
            let (Some(name), Some(address)) = (bound.file(), bound.address) else {
                continue;
            };
            let file = self.folder.run().join(name);
            // Whoever waits for the file finds all of it.
            let whole = self.folder.run().join("address.new");
            let written = std::fs::write(&whole, format!("{address}\n"))
                .and_then(|()| std::fs::rename(&whole, &file));
            if let Err(e) = written {
                tracing::warn!("{} can't be written: {e}", file.display());
            }
        }
        welcome::print(&self.folder, &self.doors, &self.config);
    }

    /// Reads the config file and hands its bytes to the gateway, which alone judges them.
    pub(super) fn reload(&mut self) {
        let is_forced = std::mem::take(&mut self.is_forced);
        let text = match config::read_file(&self.config_path) {
            Ok(Some(text)) => text,
            Ok(None) => {
                tracing::error!(
                    "{} is gone; what was read before stays in force",
                    self.config_path.display()
                );
                return;
            }
            Err(e) => {
                tracing::error!("{e}; what was read before stays in force");
                return;
            }
        };
        if text == self.text && !is_forced {
            return;
        }
        match &mut self.gateway {
            Life::Runs(gateway) if gateway.is_ready => {
                gateway.send(&ToGateway::Reload {
                    config: text.clone(),
                });
                self.asked = Some(text);
            }
            // It is asked once it serves.
            Life::Runs(_) | Life::Waits(_) => {
                self.is_forced = is_forced;
                self.reload_at = Some(Instant::now() + QUIET);
            }
        }
    }
}
