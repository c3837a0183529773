//! Packet programs, which can be detached from the cgroup root and attached again.

use super::{bpf_call::bpf, perf::owned_descriptor};
use aya_obj::generated::{
    bpf_attach_type::{self, BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS},
    bpf_attr, bpf_cmd,
};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// The packets that a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketDirection {
    Egress,
    Ingress,
}

impl PacketDirection {
    fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Egress => BPF_CGROUP_INET_EGRESS,
            Self::Ingress => BPF_CGROUP_INET_INGRESS,
        }
    }
}

/// A loaded packet program, and its link.
#[derive(Debug)]
pub struct PacketProgram {
    program: OwnedFd,
    cgroup: File,
    direction: PacketDirection,
    /// Detaches when it is dropped.
    link: Option<OwnedFd>,
}

impl PacketProgram {
    /// Attaches a loaded program to a cgroup.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn attach(program: OwnedFd, cgroup: File, direction: PacketDirection) -> io::Result<Self> {
        let mut attached = Self {
            program,
            cgroup,
            direction,
            link: None,
        };
        attached.switch(true)?;
        Ok(attached)
    }

    /// Attaches or detaches it.
    ///
    /// # Errors
    ///
    /// Those of the kernel when it attaches.
    pub fn switch(&mut self, on: bool) -> io::Result<()> {
        if !on {
            self.link = None;
        } else if self.link.is_none() {
            self.link = Some(self.make_link()?);
        }
        Ok(())
    }

    /// A link of this type lets others attach programs beside it.
    fn make_link(&self) -> io::Result<OwnedFd> {
        // SAFETY: the union consists of integers, for which zero is valid.
        let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: this member is the one that BPF_LINK_CREATE reads.
        let create = unsafe { &mut attributes.link_create };
        create.__bindgen_anon_1.prog_fd = self.program.as_raw_fd().cast_unsigned();
        create.__bindgen_anon_2.target_fd = self.cgroup.as_raw_fd().cast_unsigned();
        create.attach_type = self.direction.attach_type() as u32;
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).and_then(owned_descriptor)
    }
}
