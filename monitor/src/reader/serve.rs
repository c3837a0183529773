//! The reader's side: answers one request after the other until its socket is closed.

use super::{
    protocol::{ReadAnswer, ReadRequest, ReaderSetup},
    sandbox::{self, SandboxError},
    task::{ReaderTasks, TaskError},
    wire::{self, Deadline, WireError},
};
use crate::host;
use rustix::net::{AddressFamily, getsockname};
use std::{io, os::fd::AsFd as _};
use thiserror::Error;

/// Why a reader ended.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("this command is for the agent, which starts it with a socket as standard input")]
    NotStartedByAgent,
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Tasks(#[from] TaskError),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Answers the requests that arrive at standard input.
pub fn serve() -> Result<(), ServeError> {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let family = getsockname(socket).map(|address| address.address_family());
    if family != Ok(AddressFamily::UNIX) {
        return Err(ServeError::NotStartedByAgent);
    }
    // What a panic prints could contain what was read, and unwinding does nothing useful here.
    std::panic::set_hook(Box::new(|_| std::process::exit(PANICKED)));
    let (setup, _) = wire::receive::<ReaderSetup>(socket, Deadline::never())?;
    let mut tasks = match prepare(&setup) {
        Ok(tasks) => tasks,
        Err(error) => {
            let answer = ReadAnswer::Unreadable(error.to_string());
            wire::send(socket, &answer, None, Deadline::never())?;
            return Err(error);
        }
    };
    wire::send(socket, &ReadAnswer::Ready, None, Deadline::never())?;
    loop {
        let request = match wire::receive::<ReadRequest>(socket, Deadline::never()) {
            Ok((request, _)) => request,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        sandbox::begin_request(cpu_seconds(&request));
        let (answer, descriptor) = tasks.answer(&request);
        wipe_stack();
        let passed = descriptor.as_ref().map(|descriptor| descriptor.as_fd());
        match wire::send::<ReadAnswer>(socket, &answer, passed, Deadline::never()) {
            Ok(()) => {}
            Err(WireError::TooLarge(bytes)) => {
                let answer = ReadAnswer::Unreadable(format!("an answer of {bytes} bytes"));
                wire::send(socket, &answer, None, Deadline::never())?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes of the stack that are overwritten: more than any parser uses.
const STACK_WIPED: usize = 256 << 10;

/// Overwrites what a request left on the stack, such as the C string of a path that was a secret
/// where a path was expected. The allocator does the same for the heap.
#[inline(never)]
fn wipe_stack() {
    let mut area = [0u8; STACK_WIPED];
    std::hint::black_box(&mut area);
}

/// CPU time of one request.
fn cpu_seconds(request: &ReadRequest) -> u64 {
    match request {
        // Tens of thousands of files.
        ReadRequest::Recover { .. } => 30,
        _ => 4,
    }
}

fn prepare(setup: &ReaderSetup) -> Result<ReaderTasks, ServeError> {
    host::set_process(setup.host);
    let tasks = ReaderTasks::new(setup)?;
    sandbox::enter()?;
    Ok(tasks)
}

/// Exit status after a panic.
const PANICKED: i32 = 101;
