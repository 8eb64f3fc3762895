-- Servers refuse an address with a user name or a password before its host; so does this function. The rest of it is as
-- it was: what the parser of the WHATWG URL standard refuses, and other schemes.
CREATE OR REPLACE FUNCTION model_catalog.url_problem(url text, schemes text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    scheme    text := lower(substring(btrim(url, ' ') FROM '^([A-Za-z][A-Za-z0-9+.-]*):'));
    special   boolean := scheme IN ('http', 'https', 'ftp', 'ws', 'wss');
    rest      text;
    authority text;
    host      text;
    port      text;
    problem   text;
BEGIN
    IF scheme IS NULL THEN
        RETURN 'download_url is no absolute URL: relative URL without a base';
    ELSIF NOT scheme = ANY (schemes) THEN
        RETURN format('download_url has the scheme `%s`: allowed are %s', scheme, array_to_string(schemes, ', '));
    END IF;
    rest := substr(btrim(url, ' '), length(scheme) + 2);
    IF special THEN
        authority := substring(regexp_replace(rest, '^[/\\]*', '') FROM '^[^/\\?#]*');
    ELSIF rest LIKE '//%' AND scheme <> 'file' THEN
        authority := substring(substr(rest, 3) FROM '^[^/?#]*');
    ELSE
        RETURN NULL;
    END IF;
    host := substring(regexp_replace(authority, '^.*@', '') FROM '^(?:\[[^]]*\]?|[^:[])*');
    port := substr(regexp_replace(authority, '^.*@', ''), length(host) + 1);
    problem := CASE
        WHEN host = '' AND (special OR port <> '' OR authority ~ '[^:@].*@|:.+@') THEN 'empty host'
        WHEN special OR host LIKE '[%' THEN model_catalog.host_problem(host)
        WHEN host ~ '[][ <>\\^|]' THEN 'invalid domain character'
    END;
    -- Leading zeros are harmless; the parser counts its way through the digits.
    IF problem IS NULL AND (port !~ '^(:0*[0-9]{0,5})?$' OR nullif(substr(port, 2), '')::numeric > 65535) THEN
        problem := 'invalid port number';
    END IF;
    RETURN CASE
        WHEN problem IS NOT NULL THEN 'download_url is no absolute URL: ' || problem
        -- Before the last `@`; nothing, and a colon alone, is no user name and no password.
        WHEN authority LIKE '%@%' AND regexp_replace(authority, '@[^@]*$', '') NOT IN ('', ':') THEN
            'download_url has a user name or a password before the host, which everybody who asks for the model would '
            || 'read: take it out and set auth_required'
    END;
END
$$;
