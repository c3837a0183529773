//! Turns units off and on.

use super::unit::CostUnit;
use crate::{
    completion,
    sensor::{attacher::AttachRequest, packet_program::PacketProgram},
};
use aya::{
    maps::{MapData, MapError, ProgramArray},
    programs::ProgramFd,
};
use std::{io, sync::mpsc::Sender, time::Duration};
use thiserror::Error;

/// Maximum time to wait until files are attached to again.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a unit cannot be turned off or on.
#[derive(Debug, Error)]
pub enum SwitchError {
    #[error("the call of its program cannot be changed: {0}")]
    Call(#[from] MapError),
    #[error("its program cannot be attached again: {0}")]
    Attach(#[from] io::Error),
}

/// A program that others call through a map.
pub struct CalledProgram {
    pub program: ProgramFd,
    pub calls: ProgramArray<MapData>,
}

impl CalledProgram {
    fn switch(&mut self, on: bool) -> Result<(), MapError> {
        if on {
            self.calls.set(0, &self.program, 0)
        } else {
            self.calls.clear_index(&0)
        }
    }
}

/// What can be turned off; absent where it was not attached.
#[derive(Default)]
pub struct CostSwitches {
    pub responses: Option<CalledProgram>,
    pub plaintext: Option<CalledProgram>,
    pub ingress: Option<PacketProgram>,
    pub egress: Option<PacketProgram>,
    /// The owner of every uprobe.
    pub attacher: Option<Sender<AttachRequest>>,
}

impl CostSwitches {
    pub fn switch(&mut self, unit: CostUnit, on: bool) -> Result<(), SwitchError> {
        match unit {
            CostUnit::Responses => switch_call(self.responses.as_mut(), on),
            CostUnit::Plaintext => switch_call(self.plaintext.as_mut(), on),
            CostUnit::Dns => switch_link(self.ingress.as_mut(), on),
            CostUnit::ServerNames => switch_link(self.egress.as_mut(), on),
            CostUnit::Tls => {
                if let Some(attacher) = &self.attacher {
                    // Without the attacher there are no uprobes.
                    let _ = attacher.send(AttachRequest::Switch(on));
                    let (done, waiter) = completion::completion();
                    let _ = attacher.send(AttachRequest::Reached(done));
                    waiter.wait_timeout(ATTACH_TIMEOUT);
                }
                Ok(())
            }
        }
    }
}

fn switch_call(program: Option<&mut CalledProgram>, on: bool) -> Result<(), SwitchError> {
    Ok(program.map_or(Ok(()), |program| program.switch(on))?)
}

fn switch_link(program: Option<&mut PacketProgram>, on: bool) -> Result<(), SwitchError> {
    Ok(program.map_or(Ok(()), |program| program.switch(on))?)
}
