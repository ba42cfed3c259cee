"""The database roles: what each worker may do, and nothing more."""

from typing import Final

from sqlalchemy import Connection

#: Cluster-wide, NOLOGIN, made only if absent; a login user is a member of those it works as.
ROLES: Final = ("owner", "ingest", "settle", "fold", "evaluate", "deliver", "operator", "rejects", "read")

#: Roles that may read all that `read` may.
READERS: Final = ("settle", "fold", "evaluate", "deliver", "operator", "rejects")


def ensure_roles(connection: Connection, prefix: str) -> None:
    """Make the roles that are absent, let the owner create in the schema, and let the login user be each.

    Safe to run again and at the same time on two databases of one cluster. Commits nothing.
    """
    for role in ROLES:
        # Two databases of one cluster may be initialised at once: the loser finds the role made.
        connection.exec_driver_sql(
            f"""DO $$ BEGIN
                IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{prefix}{role}') THEN
                    CREATE ROLE {prefix}{role} NOLOGIN;
                END IF;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END $$"""
        )
        connection.exec_driver_sql(
            f"""DO $$ BEGIN
                IF NOT pg_has_role(current_user, '{prefix}{role}', 'SET') THEN
                    GRANT {prefix}{role} TO CURRENT_USER;
                END IF;
            END $$"""
        )
    for reader in READERS:
        connection.exec_driver_sql(
            f"""DO $$ BEGIN
                IF NOT pg_has_role('{prefix}{reader}', '{prefix}read', 'MEMBER') THEN
                    GRANT {prefix}read TO {prefix}{reader};
                END IF;
            END $$"""
        )
    connection.exec_driver_sql(f"GRANT CREATE, USAGE ON SCHEMA public TO {prefix}owner")
    connection.exec_driver_sql(
        f"GRANT USAGE ON SCHEMA public TO {', '.join(prefix + role for role in ROLES)}"
    )
    connection.exec_driver_sql(
        f"""DO $$ BEGIN
            EXECUTE 'GRANT CREATE, CONNECT ON DATABASE ' || quote_ident(current_database()) || ' TO {prefix}owner';
        END $$"""
    )


def grant(prefix: str, role: str, privileges: str, *tables: str) -> str:
    """The GRANT statement that lets `role` use `tables`."""
    return f"GRANT {privileges} ON {', '.join(tables)} TO {prefix}{role}"
