#![allow(dead_code)]
mod sensor { pub mod btf; }
use monitor_common::fields::*;
static OBJ: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/keytrail-probes"));
fn main() {
    let t = std::time::Instant::now();
    let btf = sensor::btf::Btf::parse("vmlinux", std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap();
    let mut offs: Offsets = [ABSENT; COUNT];
    for (i, f) in TABLE.iter().enumerate() {
        for p in f.paths { if let Some(m) = btf.member(f.structure, p).unwrap() { offs[i] = m.offset; println!("{}.{} {} {} (want {})", f.structure, p, m.offset, m.size, f.width); break; } }
    }
    println!("{:?} {:?}", layout_error(&offs), t.elapsed());
    let mut bpf = aya::EbpfLoader::new().btf(None).override_global("OFFSETS", &offs, true).load(OBJ).unwrap();
    for (name, p) in bpf.programs_mut() {
        use aya::programs::Program::*;
        let r = match p { TracePoint(p) => p.load(), RawTracePoint(p) => p.load(), CgroupSockAddr(p) => p.load(), CgroupSkb(p) => p.load(), _ => panic!() };
        match r { Ok(()) => println!("{name} ok"), Err(aya::programs::ProgramError::LoadError{io_error, verifier_log}) => { println!("{name} FAIL {io_error}"); let l = verifier_log.to_string(); println!("{}", &l[l.len().saturating_sub(3000)..]); } Err(e)=>println!("{name} {e}") }
    }
}
