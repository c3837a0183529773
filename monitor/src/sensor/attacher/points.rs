//! Attach points, by the program to attach there.

use super::LibraryFunctions;
use monitor_parse::tls_functions as tls;

/// Attach points by program: those limited to single processes, and the rest.
pub(super) type PointsByProgram = Vec<(&'static str, Vec<u64>)>;

pub(super) fn by_program(
    functions: &LibraryFunctions,
    executable: bool,
) -> (PointsByProgram, PointsByProgram) {
    let mut answers = PointsByProgram::new();
    let mut others = PointsByProgram::new();
    let add = |list: &mut PointsByProgram, program: &'static str, offset: u64| match list
        .iter_mut()
        .find(|(known, _)| *known == program)
    {
        Some((_, offsets)) if offsets.contains(&offset) => {}
        Some((_, offsets)) => offsets.push(offset),
        None => list.push((program, vec![offset])),
    };
    for &(program, offset) in functions {
        if [tls::READ, tls::READ_EX].contains(&program) {
            // The return probe first, so that a read that begins is observed to its end.
            add(&mut answers, tls::READ_RETURN, offset);
            add(&mut answers, program, offset);
        } else {
            add(&mut others, program, offset);
        }
        // A statically linked library may be passed the same bytes repeatedly until the handshake
        // has ended; what it did not accept is withdrawn.
        if executable && program == tls::WRITE {
            add(&mut others, tls::WRITTEN, offset);
        }
    }
    answers.sort_by_key(|(program, _)| *program != tls::READ_RETURN);
    (answers, others)
}
