//! The policy: decides whether uses and hops are expected. Pure, like the trail.

mod audience;
pub mod context;
pub mod decision;
pub mod expectation;
pub mod finding;
mod gateways;
pub mod label;
mod packaged;
pub mod rule_meta;
pub mod rules;
pub mod suggest;
pub mod trial;

pub use packaged::is_packaged;

use self::{
    context::Context,
    decision::Decision,
    expectation::Expectations,
    rules::{Event, Rule},
};
use crate::{
    baseline::KnownUser,
    catalog::Catalog,
    model::{
        Credential, Destination, Evidence, Finding, ForeignRead, Gap, Hop, Mint, Use, Verdict,
        Workload, WorkloadGateways,
    },
};
use std::{net::IpAddr, sync::Arc};

/// The expectations in force, and the rules with what they remember.
#[derive(Debug)]
pub struct Policy {
    context: Context,
    rules: Vec<Box<dyn Rule>>,
}

impl Policy {
    pub fn new(expectations: Expectations, catalog: Arc<Catalog>) -> Self {
        Self {
            context: Context::new(expectations, catalog),
            rules: rules::all(),
        }
    }

    /// A policy for recorded history, without the rules that need live data.
    pub fn for_history(expectations: Expectations, catalog: Arc<Catalog>) -> Self {
        let mut policy = Self::new(expectations, catalog);
        policy.rules.retain(|rule| !rule.needs_live_data());
        policy
    }

    pub fn rules(&self) -> &[Box<dyn Rule>] {
        &self.rules
    }

    /// Replaces the expectations; what the rules remember is kept.
    pub fn replace(&mut self, expectations: Expectations, catalog: Arc<Catalog>) {
        let gateways = std::mem::take(&mut self.context.gateways);
        self.context = Context {
            gateways,
            ..Context::new(expectations, catalog)
        };
    }

    /// The first process of a workload was told to send credentials to these gateways.
    pub fn set_gateways(&mut self, declared: WorkloadGateways) {
        let WorkloadGateways {
            workload,
            tenant,
            gateways,
            ..
        } = declared;
        self.context.gateways.set(&tenant, &workload, gateways);
    }

    /// Applies the name and owner of its expectation to a credential.
    pub fn apply_name(&self, credential: &mut Credential) {
        let named = self
            .context
            .expectations
            .about(credential)
            .next()
            .map(|expectation| (expectation.name.clone(), expectation.owner.clone()));
        if let Some((name, owner)) = named {
            credential.name = Some(name);
            credential.owner = owner;
        }
    }

    /// As [`apply_name`](Self::apply_name), for a credential that several records share.
    pub fn apply_shared_name(&self, credential: &mut Arc<Credential>) {
        if self.context.expectations.about(credential).next().is_some() {
            self.apply_name(Arc::make_mut(credential));
        }
    }

    /// Applies the names of their expectations to the credentials of a mint.
    pub fn apply_mint_names(&self, mint: &mut Mint) {
        for credential in [&mut mint.presented, &mut mint.minted]
            .into_iter()
            .flatten()
        {
            self.apply_name(credential);
        }
    }

    /// Whether credentials are minted at a destination.
    pub fn is_authenticator(&self, destination: &Destination) -> bool {
        self.context.authenticator(destination).is_some()
    }

    /// A credential presented to an authenticator proves an identity, whatever the response.
    pub fn proof_of_identity(&self, hop: &Hop) -> Option<Mint> {
        let known = hop.evidence == Evidence::Presented && hop.others.is_empty();
        (known && self.is_authenticator(&hop.destination)).then(|| Mint {
            time: hop.time,
            workload: hop.workload.clone(),
            process: hop.process.clone(),
            authenticator: hop.destination.clone(),
            presented: Some((*hop.credential).clone()),
            minted: None,
        })
    }

    /// Addresses at which credentials are minted.
    pub fn minting_addresses(&self) -> Vec<IpAddr> {
        self.context.minting_addresses()
    }

    /// The rules that a use violates, apart from those that depend on the reader's name.
    pub fn judge_use(&mut self, used: &Use) -> Vec<Finding> {
        self.judge(&Event::Use(used))
    }

    /// Whether the reader of a credential is permitted; can be repeated when its name is known.
    pub fn judge_reader(&mut self, used: &Use) -> Decision {
        self.judge_by_name(&Event::Use(used))
    }

    /// The verdict on a hop, and the rules that it violates.
    pub fn judge_hop(&mut self, hop: &Hop) -> (Verdict, Vec<Finding>) {
        let assessed = self.context.assess(hop);
        let verdict = assessed.verdict;
        (verdict, self.judge(&Event::Hop(&assessed)))
    }

    /// Whether a workload is a new user of the credential that it presents; once, when its name is
    /// known.
    pub fn judge_user(&mut self, hop: &Hop) -> Decision {
        self.judge_by_name(&Event::Presented(hop))
    }

    /// Whether a workload may obtain a credential; can be repeated when its name is known.
    pub fn judge_mint(&mut self, mint: &Mint) -> Decision {
        self.judge_by_name(&Event::Mint(mint))
    }

    /// The rules that a read of another process violates.
    pub fn judge_foreign(&mut self, read: &ForeignRead) -> Vec<Finding> {
        self.judge(&Event::ForeignRead(read))
    }

    /// The rules that a gap violates.
    pub fn judge_gap(&mut self, gap: &Gap) -> Vec<Finding> {
        self.judge(&Event::Gap(gap))
    }

    /// Takes what earlier runs of the agent recorded.
    pub fn restore(&mut self, known: &[KnownUser]) {
        for rule in &mut self.rules {
            rule.restore(known);
        }
    }

    /// What the tables of rules, and that of gateways, forgot for lack of room.
    pub fn forgotten(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let gateways = ("gateways", self.context.gateways.forgotten());
        let all = self.rules.iter();
        all.map(|rule| (rule.meta().name, rule.forgotten()))
            .chain([gateways])
            .filter(|(_, count)| *count > 0)
    }

    /// A workload was renamed.
    pub fn rename(&mut self, old: &Workload, new: &Workload) {
        self.context.gateways.rename(old, new);
        for rule in &mut self.rules {
            rule.rename(old, new);
        }
    }

    fn judge(&mut self, event: &Event<'_>) -> Vec<Finding> {
        self.rules
            .iter_mut()
            .filter(|rule| !rule.depends_on_name(event))
            .filter_map(|rule| rule.judge(event, &self.context).into_finding())
            .collect()
    }

    /// At most one rule about each kind of event depends on names.
    fn judge_by_name(&mut self, event: &Event<'_>) -> Decision {
        self.rules
            .iter_mut()
            .filter(|rule| rule.depends_on_name(event))
            .map(|rule| rule.judge(event, &self.context))
            .find(|decision| *decision != Decision::Allowed)
            .unwrap_or(Decision::Allowed)
    }
}

#[cfg(test)]
mod tests;
