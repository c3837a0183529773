//! Answers of readers, and what is reported if they do not come in time.

use super::{ContentsResult, EnvironmentUse, LateFile, ReadPurpose};
use crate::{
    pipeline::enricher::Enricher,
    reader::{
        ReadFailure, ReadId, ReadResult,
        protocol::{EnvironmentAnswer, ReadAnswer, ReadRequest},
    },
};
use jiff::{SignedDuration, Timestamp};
use monitor_core::{model::Subject, trail::TrailEvent};

/// After this time a file is reported without its contents.
const LATE_MAX: SignedDuration = SignedDuration::from_secs(3);

impl Enricher {
    /// Takes the answer to a request.
    pub(in crate::pipeline::enricher) fn take_answer(
        &mut self,
        id: ReadId,
        result: ReadResult,
        now: Timestamp,
        events: &mut Vec<TrailEvent>,
    ) {
        match self.reads.purposes.remove(&id) {
            Some(ReadPurpose::Head) => self.take_head_answer(id, result),
            Some(ReadPurpose::LateFile(late)) => {
                self.reads.forget_late(late.open.file.device);
                let result = contents(result);
                let was_read = result.as_ref().is_ok_and(|answer| answer.contents.is_ok());
                if was_read || !late.reported {
                    self.file_read(&late.open, late.source, &late.place, result, events);
                }
            }
            Some(ReadPurpose::Environment(taken)) => {
                self.take_environment(&taken, environment(result), events);
            }
            Some(ReadPurpose::Process { time, subject }) => {
                self.reads.unexamined -= 1;
                if let Ok(ReadAnswer::Process(answer)) = result {
                    self.take_process(time, subject, answer, events);
                }
            }
            Some(ReadPurpose::Trust { subject, request }) => {
                self.take_trust(now, id, (subject, &request), result);
            }
            Some(ReadPurpose::Declarations { process, is_first }) => {
                self.take_declarations(now, (process, is_first), environment(result), events);
                if let Some(head) = &mut self.reads.head {
                    head.context.remove(&id);
                }
            }
            Some(ReadPurpose::Resolvers { view }) => {
                if let Ok(ReadAnswer::Resolvers(answer)) = result {
                    self.take_resolvers(now, view, answer, events);
                }
                if let Some(head) = &mut self.reads.head {
                    head.context.remove(&id);
                }
            }
            Some(ReadPurpose::Homes) => {
                if let Ok(ReadAnswer::Homes(homes)) = result {
                    self.attribution.set_homes(homes);
                }
            }
            Some(ReadPurpose::Recovered {
                known,
                attempts_left,
            }) => match result {
                Ok(ReadAnswer::Recovered(files)) => self.take_recovered(files),
                _ if attempts_left > 0 => self.reads.request_recovered(known, attempts_left - 1),
                _ => {}
            },
            // It was given up.
            None => {}
        }
    }

    fn take_head_answer(&mut self, id: ReadId, result: ReadResult) {
        let Some(head) = &mut self.reads.head else {
            return;
        };
        if let Some(file) = head.file.as_mut().filter(|file| file.id == id) {
            file.contents = Some(contents(result));
        } else if let Some(asked) = head.environment.as_mut().filter(|asked| asked.id == id) {
            asked.answer = Some(environment(result));
        }
    }

    /// Takes what was read about the program of a process, and asks what else must be known.
    fn take_trust(
        &mut self,
        now: Timestamp,
        id: ReadId,
        (subject, request): (Subject, &ReadRequest),
        result: ReadResult,
    ) {
        // What cannot be determined is asked again with the next credential.
        let next = if let Ok(ReadAnswer::Fact(Some(fact))) = result {
            self.attribution.set_trust(subject, request, fact);
            self.request_trust(now, subject)
        } else {
            None
        };
        if let Some(head) = &mut self.reads.head
            && head.context.remove(&id)
        {
            head.context.extend(next);
        }
    }

    /// Requests what must be known to trust the program of a process, if anything.
    pub(in crate::pipeline::enricher) fn request_trust(
        &mut self,
        now: Timestamp,
        subject: Subject,
    ) -> Option<ReadId> {
        let request = self.attribution.trust_request(now, subject)?;
        let purpose = ReadPurpose::Trust {
            subject,
            request: request.clone(),
        };
        Some(self.reads.request(request, purpose))
    }

    /// Reports files whose contents take too long by their place; if the contents come after all,
    /// they are reported as well.
    pub fn report_overdue(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        // The clock may have been set back.
        let is_overdue = |late: &LateFile| now.duration_since(late.since).abs() >= LATE_MAX;
        self.report_by_place(is_overdue, events);
    }

    /// Reports late files by their place, each once.
    pub(super) fn report_by_place(
        &mut self,
        which: impl Fn(&LateFile) -> bool,
        events: &mut Vec<TrailEvent>,
    ) {
        let mut purposes = std::mem::take(&mut self.reads.purposes);
        for purpose in purposes.values_mut() {
            if let ReadPurpose::LateFile(late) = purpose
                && !late.reported
                && which(late)
            {
                late.reported = true;
                let unread = Err(ReadFailure::TimedOut);
                self.file_read(&late.open, late.source, &late.place, unread, events);
            }
        }
        purposes.append(&mut self.reads.purposes);
        self.reads.purposes = purposes;
    }

    pub(super) fn take_environment(
        &mut self,
        taken: &EnvironmentUse,
        answer: Option<EnvironmentAnswer>,
        events: &mut Vec<TrailEvent>,
    ) {
        // Without an answer nothing was followed: the next process with that value is.
        let Some(EnvironmentAnswer {
            variables, places, ..
        }) = answer
        else {
            return;
        };
        let EnvironmentUse { time, subject, .. } = *taken;
        if taken.pick_up {
            let tenant = self.attribution.tenant(subject);
            let found = self.credentials.in_environment(&tenant, &variables);
            self.pick_up_variables(time, subject, found, events);
        }
        self.learn_places(subject, &taken.values, places);
    }
}

fn contents(result: ReadResult) -> ContentsResult {
    match result? {
        ReadAnswer::File(answer) => Ok(answer),
        _ => Err(ReadFailure::Unreadable),
    }
}

fn environment(result: ReadResult) -> Option<EnvironmentAnswer> {
    match result {
        Ok(ReadAnswer::Environment(answer)) => Some(answer),
        _ => None,
    }
}
