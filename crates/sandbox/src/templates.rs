//! Where machines come from, as the domain sees it.

use std::sync::Arc;

use async_trait::async_trait;
use pandastack_engine::Bake;
use pandastack_image::{Catalog, ImageError, Progress};
use pandastack_types::{Size, TemplateName, TemplateView};

/// What a create needs to know about a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its own name, also when it was asked for by an alias.
    pub name: TemplateName,
    /// Its default size.
    pub size: Size,
    /// Whether its image is built.
    pub built: bool,
}

/// The templates of a server. The catalogue of images is the one implementation; tests bring
/// another that needs no image.
#[async_trait]
pub trait Templates: Send + Sync {
    /// The template with this name or alias.
    fn find(&self, name: &TemplateName) -> Option<Template>;

    /// Every template, for the API.
    fn list(&self) -> Vec<TemplateView>;

    /// The bake of a template in a size, if there is one. Fast.
    fn baked(&self, template: &TemplateName, size: Size) -> Option<Arc<Bake>>;

    /// The bake of a template in a size, made when there is none. Concurrent calls share one
    /// effort; dropping the future gives it up.
    async fn bake(
        &self,
        template: &TemplateName,
        size: Size,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<Bake>, BakeError>;

    /// Removes the bakes that were used longest ago, but for those in use, until at most `keep` are
    /// left besides the templates' own sizes. Says how many went. Blocks.
    fn evict(&self, keep: usize) -> Result<usize, BakeError>;
}

#[async_trait]
impl Templates for Catalog {
    fn find(&self, name: &TemplateName) -> Option<Template> {
        let recipe = self.resolve(name)?;
        Some(Template {
            name: recipe.name().clone(),
            size: recipe.size(),
            built: self.is_built(recipe),
        })
    }

    fn list(&self) -> Vec<TemplateView> {
        Catalog::list(self)
    }

    fn baked(&self, template: &TemplateName, size: Size) -> Option<Arc<Bake>> {
        Catalog::baked(self, self.resolve(template)?, size)
    }

    async fn bake(
        &self,
        template: &TemplateName,
        size: Size,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<Bake>, BakeError> {
        let recipe = self.resolve(template).ok_or(BakeError::Unknown)?;
        Catalog::bake(self, recipe, size, progress).await.map_err(BakeError::Image)
    }

    fn evict(&self, keep: usize) -> Result<usize, BakeError> {
        Catalog::evict(self, keep).map(|pruned| pruned.removed).map_err(BakeError::Image)
    }
}

/// Why a template has no bake.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// It is not in the catalogue any more.
    #[error("the template is gone")]
    Unknown,
    /// Making it failed.
    #[error("the template could not be prepared")]
    Image(#[source] ImageError),
}
