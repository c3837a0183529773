//! Printing of answers.

use super::args::{CliError, GraphFormat, OutputFormat};
use crate::output::{GraphAnswer, TableAnswer};
use std::io::Write as _;

pub(super) fn print_graph(output: GraphFormat, answer: &impl GraphAnswer) -> Result<(), CliError> {
    match output {
        GraphFormat::Table => print_answer(OutputFormat::Table, answer),
        GraphFormat::Json => print_answer(OutputFormat::Json, answer),
        GraphFormat::Dot => write_out(&answer.graph()),
    }
}

pub(super) fn print_answer(
    output: OutputFormat,
    answer: &impl TableAnswer,
) -> Result<(), CliError> {
    match output {
        OutputFormat::Table => write_out(&answer.table()),
        OutputFormat::Json => {
            let text = serde_json::to_string_pretty(answer)
                .map_err(|error| CliError::Failed(format!("cannot write the answer: {error}")))?;
            write_out(&(text + "\n"))
        }
    }
}

pub(super) fn write_out(text: &str) -> Result<(), CliError> {
    match anstream::stdout().write_all(text.as_bytes()) {
        // The reader, such as `head`, has closed the pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::Failed(format!(
            "cannot write the answer: {error}"
        ))),
        Ok(()) => Ok(()),
    }
}
