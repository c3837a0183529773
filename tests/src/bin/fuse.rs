//! A file system in user space that answers `cat` and nobody else: whoever else asks waits until
//! this program ends. It serves ten private keys, all fake.

use anyhow::{Context as _, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    SessionACL,
};
use std::{
    any::Any,
    ffi::OsStr,
    io::{BufRead as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

/// Number of files: `0.key` to `9.key`.
const FILES: u64 = 10;
/// The user that runs it.
const NOBODY: u32 = 65_534;

#[derive(Default)]
struct HoldingFileSystem {
    /// Replies that are never sent; dropping one would send an error.
    held: Mutex<Vec<Box<dyn Any + Send>>>,
}

fn contents(inode: INodeNo) -> String {
    format!(
        "-----BEGIN PRIVATE KEY-----\nRkFLRWZha2VGQUtF{:04}\n-----END PRIVATE KEY-----\n",
        u64::from(inode)
    )
}

fn attributes(inode: INodeNo) -> FileAttr {
    let is_root = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if is_root {
            0
        } else {
            contents(inode).len() as u64
        },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl HoldingFileSystem {
    /// Returns the reply if `cat` asks; keeps it otherwise.
    fn admit<T: Send + 'static>(&self, request: &Request, reply: T) -> Option<T> {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", request.pid()));
        if comm.is_ok_and(|comm| comm.trim() == "cat") {
            return Some(reply);
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(Box::new(reply));
        None
    }
}

impl Filesystem for HoldingFileSystem {
    fn lookup(&self, request: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(reply) = self.admit(request, reply) else {
            return;
        };
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".key")?.parse::<u64>().ok())
            .filter(|number| *number < FILES);
        match number {
            Some(number) => {
                let inode = INodeNo(number + 2);
                reply.entry(&Duration::ZERO, &attributes(inode), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        // The kernel asks this for the mount itself.
        if inode == INodeNo::ROOT {
            reply.attr(&Duration::ZERO, &attributes(inode));
        } else if let Some(reply) = self.admit(request, reply) {
            reply.attr(&Duration::ZERO, &attributes(inode));
        }
    }

    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if let Some(reply) = self.admit(request, reply) {
            reply.opened(FileHandle(0), FopenFlags::empty());
        }
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(reply) = self.admit(request, reply) {
            let contents = contents(inode);
            let rest = contents.as_bytes().get(offset as usize..).unwrap_or(&[]);
            reply.data(&rest[..rest.len().min(size as usize)]);
        }
    }
}

/// Mounts at the given directory, becomes nobody, says so, and serves until its input ends.
fn main() -> Result<()> {
    let place = std::env::args_os().nth(1).context("a directory")?;
    let mut options = Config::default();
    options.mount_options = vec![MountOption::FSName("hostile".to_owned())];
    options.acl = SessionACL::All;
    let session = fuser::spawn_mount(HoldingFileSystem::default(), place, &options)?;
    // SAFETY: the call has no preconditions; the C library makes it for every thread.
    anyhow::ensure!(unsafe { libc::setuid(NOBODY) } == 0, "cannot become nobody");
    println!("mounted");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    drop(session);
    Ok(())
}
