# SPDX-License-Identifier: Apache-2.0
"""Apps deployed from git: ``client.apps``. A server may not offer them: see `_rest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional

from ._rest import Rest, given

if TYPE_CHECKING:
    from .client import Client

Info = Dict[str, Any]


class AppsAPI:
    """Apps, their deployments, environments, domains and pull-request previews.

    Environment variables with ``secret=True`` are stored encrypted, and come back masked.
    """

    def __init__(self, client: Client) -> None:
        self._rest = Rest(client)

    def create(
        self,
        name: str,
        git_url: str,
        *,
        git_branch: Optional[str] = None,
        framework: Optional[str] = None,
        install_command: Optional[str] = None,
        build_command: Optional[str] = None,
        start_command: Optional[str] = None,
        root_directory: Optional[str] = None,
        port: Optional[int] = None,
        env: Optional[Dict[str, str]] = None,
        template: Optional[str] = None,
        cpu: Optional[int] = None,
        memory_mb: Optional[int] = None,
    ) -> Info:
        """Defines an app; what is left out is found from the repository."""
        body = given(
            name=name,
            git_url=git_url,
            git_branch=git_branch,
            framework=framework,
            install_command=install_command,
            build_command=build_command,
            start_command=start_command,
            root_directory=root_directory,
            port=port,
            env=env,
            template=template,
            cpu=cpu,
            memory_mb=memory_mb,
        )
        return self._rest.object("POST", "apps", json=body)

    def list(self) -> List[Info]:
        """All apps."""
        return self._rest.objects("apps")

    def get(self, app_id: str) -> Info:
        """One app, with its ``url`` when it runs."""
        return self._rest.object("GET", "apps", app_id)

    def update(self, app_id: str, **fields: Any) -> Info:
        """Changes fields of `create`; the next deployment uses them."""
        return self._rest.object("PATCH", "apps", app_id, json=given(**fields))

    def delete(self, app_id: str) -> None:
        """Deletes an app and its sandbox."""
        self._rest.delete("apps", app_id)

    def deploy(self, app_id: str, *, git_ref: Optional[str] = None) -> Info:
        """Starts a deployment of a branch, tag or commit."""
        return self._rest.object("POST", "apps", app_id, "deploys", json=given(git_ref=git_ref))

    def deployments(self, app_id: str) -> List[Info]:
        """An app's deployments, newest first."""
        return self._rest.objects("apps", app_id, "deploys")

    def deployment(self, app_id: str, deployment_id: str) -> Info:
        """One deployment, with its log."""
        return self._rest.object("GET", "apps", app_id, "deploys", deployment_id)

    def rollback(self, app_id: str) -> Info:
        """Starts a deployment of what ran before."""
        return self._rest.object("POST", "apps", app_id, "rollback")

    def deploy_logs(self, app_id: str, deployment_id: str) -> Iterator[str]:
        """The lines of a deployment's log, until it is over."""
        return self._rest.lines("apps", app_id, "deploys", deployment_id, "logs")

    def previews(self) -> List[Info]:
        """The apps that are previews of pull requests."""
        return [app for app in self.list() if app.get("is_preview")]

    def preview_repos(self) -> List[Info]:
        """The repositories whose pull requests get previews."""
        return self._rest.objects("preview-repos", key="repos")

    def enable_preview_repo(
        self, github_repo_id: int, *, repo_full_name: Optional[str] = None
    ) -> Info:
        """Gives pull requests of a repository previews."""
        body = given(github_repo_id=github_repo_id, repo_full_name=repo_full_name)
        return self._rest.object("POST", "preview-repos", json=body)

    def disable_preview_repo(self, github_repo_id: int) -> None:
        """Stops that for pull requests to come."""
        self._rest.delete("preview-repos", str(github_repo_id))

    def list_env(self, app_id: str) -> List[Info]:
        """An app's variables, as ``{key, value, secret, scope}``."""
        return self._rest.objects("apps", app_id, "env", key="env")

    def set_env(
        self, app_id: str, key: str, value: str, *, secret: bool = False, scope: str = "all"
    ) -> Info:
        """Sets a variable for ``all``, ``production`` or ``preview``."""
        body = {"value": value, "secret": secret, "scope": scope}
        return self._rest.object("PUT", "apps", app_id, "env", key, json=body)

    def unset_env(self, app_id: str, key: str) -> None:
        """Deletes a variable."""
        self._rest.delete("apps", app_id, "env", key)

    def import_env(
        self, app_id: str, dotenv: str, *, secret: bool = False, scope: str = "all"
    ) -> Info:
        """Sets the variables of a text of ``KEY=value`` lines."""
        body = {"dotenv": dotenv, "secret": secret, "scope": scope}
        return self._rest.object("POST", "apps", app_id, "env", "import", json=body)

    def add_domain(self, app_id: str, domain: str) -> Info:
        """Adds a domain; ``records`` of the answer are the DNS records to make."""
        return self._rest.object("POST", "apps", app_id, "domains", json={"domain": domain})

    def domains(self, app_id: str) -> List[Info]:
        """An app's domains."""
        return self._rest.objects("apps", app_id, "domains", key="domains")

    def get_domain(self, app_id: str, domain: str) -> Info:
        """One domain; ``status`` becomes ``active``."""
        return self._rest.object("GET", "apps", app_id, "domains", domain)

    def remove_domain(self, app_id: str, domain: str) -> None:
        """Takes a domain away from an app."""
        self._rest.delete("apps", app_id, "domains", domain)

    def list_preview_env(self, github_repo_id: int) -> List[Info]:
        """The variables of a repository's previews."""
        return self._rest.objects("repos", str(github_repo_id), "preview-env", key="env")

    def set_preview_env(
        self, github_repo_id: int, key: str, value: str, *, secret: bool = False
    ) -> Info:
        """Sets a variable of a repository's previews."""
        body = {"value": value, "secret": secret}
        return self._rest.object("PUT", "repos", str(github_repo_id), "preview-env", key, json=body)

    def unset_preview_env(self, github_repo_id: int, key: str) -> None:
        """Deletes a variable of a repository's previews."""
        self._rest.delete("repos", str(github_repo_id), "preview-env", key)

    def import_preview_env(self, github_repo_id: int, dotenv: str, *, secret: bool = False) -> Info:
        """`import_env` for a repository's previews."""
        body = {"dotenv": dotenv, "secret": secret}
        where = ("repos", str(github_repo_id), "preview-env", "import")
        return self._rest.object("POST", *where, json=body)
