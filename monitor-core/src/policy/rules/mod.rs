//! The rules: one file each, and the registry from which everything that lists rules is made.

mod blind;
mod cleartext_credential;
mod credential_copied;
mod expired_credential_used;
mod foreign_process_read;
mod harvest;
mod human_use;
mod long_lived_credential;
mod new_user;
mod revoked_credential_used;
mod unexpected_hop;
mod unexpected_mint;
mod unexpected_reader;
mod untrusted_binary;

pub use super::rule_meta::{AlertMeta, RuleMeta};
use super::{
    context::{AssessedHop, Context},
    decision::Decision,
};
use crate::{
    baseline::KnownUser,
    model::{Finding, ForeignRead, Gap, Hop, Mint, Use, Workload},
};
use std::{fmt::Debug, sync::LazyLock};

/// An event that rules judge.
#[derive(Debug)]
pub enum Event<'a> {
    Use(&'a Use),
    Hop(&'a AssessedHop<'a>),
    /// Who presented a credential, wherever.
    Presented(&'a Hop),
    Mint(&'a Mint),
    ForeignRead(&'a ForeignRead),
    Gap(&'a Gap),
}

/// A rule, with what it remembers.
pub trait Rule: Debug + Send {
    fn meta(&self) -> &'static RuleMeta;

    /// Judges an event; events that the rule is not about are allowed.
    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision;

    /// Whether it needs data that the ledger does not store, so that `policy test` cannot judge
    /// recorded history by it.
    fn needs_live_data(&self) -> bool;

    /// Whether it can judge a recorded finding again, given that it judges history at all.
    fn can_judge_again(&self, _recorded: &Finding) -> bool {
        true
    }

    /// Whether its decision about an event depends on the name of a workload, so that it may be
    /// pending until the name is known. It judges an event again if it decided so.
    fn depends_on_name(&self, _event: &Event<'_>) -> bool {
        false
    }

    /// Number of entries of its tables that were forgotten for lack of room.
    fn forgotten(&self) -> u64 {
        0
    }

    /// Takes what earlier runs of the agent recorded.
    fn restore(&mut self, _known: &[KnownUser]) {}

    /// A workload was renamed.
    fn rename(&mut self, _old: &Workload, _new: &Workload) {}
}

/// Every rule, in the order in which their findings about one event are raised.
pub fn all() -> Vec<Box<dyn Rule>> {
    vec![
        Box::new(untrusted_binary::UntrustedBinary),
        Box::new(human_use::HumanUse),
        Box::new(long_lived_credential::LongLivedCredential::default()),
        Box::new(unexpected_hop::UnexpectedHop),
        Box::new(new_user::NewUser::default()),
        Box::new(cleartext_credential::CleartextCredential),
        Box::new(revoked_credential_used::RevokedCredentialUsed),
        Box::new(expired_credential_used::ExpiredCredentialUsed),
        Box::new(credential_copied::CredentialCopied::default()),
        Box::new(harvest::Harvest::default()),
        Box::new(unexpected_reader::UnexpectedReader),
        Box::new(unexpected_mint::UnexpectedMint),
        Box::new(foreign_process_read::ForeignProcessRead),
        Box::new(blind::Blind),
    ]
}

/// The metadata of every rule, by name.
pub fn metas() -> &'static [&'static RuleMeta] {
    static METAS: LazyLock<Vec<&'static RuleMeta>> = LazyLock::new(|| {
        let mut metas: Vec<&'static RuleMeta> = all().iter().map(|rule| rule.meta()).collect();
        metas.sort_by_key(|meta| meta.name);
        metas
    });
    &METAS
}

/// Rejects a name that no rule has, and lists the rules.
pub fn check_rule_name(name: &str) -> Result<(), String> {
    let names: Vec<&str> = metas().iter().map(|meta| meta.name).collect();
    if names.contains(&name) {
        return Ok(());
    }
    Err(format!(
        "no rule `{name}`; the rules are {}",
        names.join(", ")
    ))
}
