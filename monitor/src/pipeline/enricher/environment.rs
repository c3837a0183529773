//! Credentials in the environment of a process, and the places that it names.

use super::Enricher;
use crate::{
    observed::variable::ObservedVariable,
    reader::protocol::PointedPlace,
    sensor::observation::{Observation, StdoutPipe, TaskInfo},
};
use jiff::Timestamp;
use monitor_core::{
    model::{Credential, Place, Subject},
    trail::TrailEvent,
};
use std::{collections::VecDeque, sync::Arc};

impl Enricher {
    /// The variables of one exec: `first`, and those at the front of `rest`. They belong together:
    /// an AWS key pair consists of two or three of them.
    pub(super) fn variables(
        &mut self,
        task: &TaskInfo,
        first: ObservedVariable,
        rest: &mut VecDeque<Observation>,
        events: &mut Vec<TrailEvent>,
    ) {
        let mut variables = vec![first];
        let same_exec = |next: &mut Observation| matches!(next, Observation::Variable(next, _) if next.subject == task.subject);
        while let Some(Observation::Variable(_, variable)) = rest.pop_front_if(same_exec) {
            variables.push(variable);
        }
        self.attribution.ensure(task);
        let container = self.container_of(task.subject);
        let values: Vec<u64> = variables
            .iter()
            .filter_map(|variable| self.credentials.points(variable, &container))
            .collect();
        if !values.is_empty() {
            self.reads.request_places(task.time, task.subject, values);
        }
        let tenant = self.attribution.tenant(task.subject);
        let found = self.credentials.in_environment(&tenant, &variables);
        self.pick_up_variables(task.time, task.subject, found, events);
    }

    pub(super) fn pick_up_variables(
        &mut self,
        time: Timestamp,
        subject: Subject,
        found: Vec<(Arc<Credential>, Place)>,
        events: &mut Vec<TrailEvent>,
    ) {
        for (credential, place) in found {
            let picked_up =
                self.pick_up(time, subject, credential, place, 1, StdoutPipe::default());
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }

    /// Learns the places of credentials that a process's environment names.
    pub(super) fn learn_places(
        &mut self,
        subject: Subject,
        values: &[u64],
        places: Vec<PointedPlace>,
    ) {
        let container = self.container_of(subject);
        let (files, is_new) = self.credentials.add_places(&container, values, places);
        self.wanted.learn.extend(files);
        self.wanted.places_changed |= is_new;
    }
}
