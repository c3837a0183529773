//! What the pipeline asks of the probes.

use super::{Sensor, SensorError, attacher::AttachRequest, exclude::ExclusionRules};
use crate::{
    observed::file::FileId,
    reader::{ReadId, protocol::ReadRequest},
};
use monitor_core::{
    catalog::{Catalog, kernel_filter::FilterRules},
    fair_cache::Tenant,
};
use std::{net::IpAddr, sync::Arc};

/// Changes to what the probes observe and readers recognise, applied in the order of the fields, and
/// requests to readers, which are submitted separately.
#[derive(Debug, Default)]
pub struct Effects {
    /// New rules of the kernel filter.
    pub rules: Option<FilterRules>,
    /// Files whose opens are reported, regardless of their name.
    pub learn: Vec<FileId>,
    /// Files whose opens are ignored: only their name looks like a credential's.
    pub ignore: Vec<FileId>,
    /// Processes that talk to an authenticator: their TLS reads are inspected.
    pub inspect_responses: Vec<u32>,
    /// Addresses whose plaintext responses are searched without a quota.
    pub authenticators: Option<Vec<IpAddr>>,
    /// Programs to which no uprobe is attached.
    pub exclusion: Option<ExclusionRules>,
    /// A changed catalog.
    pub catalog: Option<Arc<Catalog>>,
    /// Fingerprints of secrets that are masked in names, and who picked them up.
    pub secrets: Vec<(Tenant, u64)>,
    /// Requests to readers.
    pub reads: Vec<(ReadId, ReadRequest)>,
    /// More image names became known: the exclusion rules may match more programs.
    pub reconsider_exclusion: bool,
}

impl Sensor {
    /// Applies the pipeline's effects.
    pub fn apply(&mut self, effects: Effects) -> Result<(), SensorError> {
        if let Some(rules) = &effects.rules {
            self.filter.set_rules(rules)?;
        }
        for file in effects.learn {
            self.filter.learn(file)?;
        }
        for file in effects.ignore {
            self.filter.ignore(file)?;
        }
        if let Some(catalog) = effects.catalog {
            self.readers.set_catalog(catalog.sources().clone());
            self.rings.mask.set_catalog(&catalog);
        }
        self.rings.mask.learn(effects.secrets);
        if let Some(addresses) = &effects.authenticators {
            self.set_authenticators(addresses)?;
        }
        let Some(uprobes) = &self.uprobes else {
            return Ok(());
        };
        for pid in effects.inspect_responses {
            uprobes
                .attacher
                .send(AttachRequest::InspectResponses { pid });
        }
        if let Some(exclusion) = effects.exclusion {
            uprobes.exclude(exclusion);
        } else if effects.reconsider_exclusion {
            uprobes.attacher.send(AttachRequest::Reconsider);
        }
        Ok(())
    }
}
