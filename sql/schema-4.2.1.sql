-- This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
-- If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

-- The tables of Mozpool 4.2.1 as a MySQL server of its time kept them: latin1, keys without names of ours. The tests
-- upgrade such a database; a new one is made by `mozpool-db create-schema` or from schema.sql.

CREATE TABLE imaging_servers (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    fqdn VARCHAR(255) NOT NULL UNIQUE
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE pxe_configs (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(32) NOT NULL UNIQUE,
    description TEXT NOT NULL,
    contents TEXT NOT NULL,
    active INTEGER NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE images (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(32) NOT NULL UNIQUE,
    boot_config_keys TEXT NOT NULL,
    can_reuse INTEGER NOT NULL,
    hidden INTEGER NOT NULL,
    has_sut_agent INTEGER NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE hardware_types (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    type VARCHAR(32) NOT NULL,
    model VARCHAR(32) NOT NULL,
    UNIQUE INDEX (type, model)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE image_pxe_configs (
    image_id INTEGER UNSIGNED NOT NULL,
    hardware_type_id INTEGER UNSIGNED NOT NULL,
    pxe_config_id INTEGER UNSIGNED,
    PRIMARY KEY (image_id, hardware_type_id),
    FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE RESTRICT,
    FOREIGN KEY (hardware_type_id) REFERENCES hardware_types(id) ON DELETE RESTRICT,
    FOREIGN KEY (pxe_config_id) REFERENCES pxe_configs(id) ON DELETE RESTRICT
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE devices (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(32) NOT NULL UNIQUE,
    fqdn VARCHAR(256) NOT NULL,
    inventory_id INTEGER NOT NULL,
    state VARCHAR(32) NOT NULL,
    state_counters TEXT NOT NULL,
    state_timeout DATETIME,
    mac_address VARCHAR(12) NOT NULL,
    imaging_server_id INTEGER UNSIGNED NOT NULL,
    relay_info TEXT,
    image_id INTEGER UNSIGNED,
    boot_config TEXT,
    next_image_id INTEGER UNSIGNED,
    next_boot_config TEXT,
    comments TEXT,
    environment VARCHAR(32) DEFAULT 'none',
    hardware_type_id INTEGER UNSIGNED,
    INDEX state_timeout_idx (state_timeout),
    FOREIGN KEY (imaging_server_id) REFERENCES imaging_servers(id) ON DELETE RESTRICT,
    FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE RESTRICT,
    FOREIGN KEY (next_image_id) REFERENCES images(id) ON DELETE RESTRICT,
    FOREIGN KEY (hardware_type_id) REFERENCES hardware_types(id) ON DELETE RESTRICT
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE requests (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    imaging_server_id INTEGER UNSIGNED NOT NULL,
    requested_device VARCHAR(32) NOT NULL,
    assignee VARCHAR(256) NOT NULL,
    expires DATETIME NOT NULL,
    image_id INTEGER UNSIGNED NOT NULL,
    boot_config TEXT,
    state VARCHAR(32) NOT NULL,
    state_counters TEXT NOT NULL,
    state_timeout DATETIME,
    environment VARCHAR(32) DEFAULT 'any',
    FOREIGN KEY (imaging_server_id) REFERENCES imaging_servers(id) ON DELETE RESTRICT,
    FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE RESTRICT
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE device_requests (
    request_id BIGINT NOT NULL UNIQUE,
    device_id INTEGER NOT NULL UNIQUE,
    imaging_result VARCHAR(32)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

CREATE TABLE relay_boards (
    id INTEGER UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(32) NOT NULL UNIQUE,
    fqdn VARCHAR(255) NOT NULL UNIQUE,
    imaging_server_id INTEGER UNSIGNED NOT NULL,
    state VARCHAR(32) NOT NULL,
    state_counters TEXT NOT NULL,
    state_timeout DATETIME,
    FOREIGN KEY (imaging_server_id) REFERENCES imaging_servers(id) ON DELETE RESTRICT
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT;

-- Partitions of November 2013: the old procedures worked only in a database named mozpool, and often did not run.
CREATE TABLE device_logs (
    id BIGINT NOT NULL AUTO_INCREMENT,
    device_id INTEGER NOT NULL,
    ts TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    source VARCHAR(32) NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (id, ts),
    INDEX device_id_idx (device_id),
    INDEX ts_idx (ts)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT
PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (
    PARTITION p1384300800 VALUES LESS THAN (1384300800),
    PARTITION p1384387200 VALUES LESS THAN (1384387200)
);

CREATE TABLE request_logs (
    id BIGINT NOT NULL AUTO_INCREMENT,
    request_id BIGINT NOT NULL,
    ts TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    source VARCHAR(32) NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (id, ts),
    INDEX request_id_idx (request_id),
    INDEX ts_idx (ts)
) ENGINE=InnoDB DEFAULT CHARSET=latin1 ROW_FORMAT=COMPACT
PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (
    PARTITION p1384300800 VALUES LESS THAN (1384300800),
    PARTITION p1384387200 VALUES LESS THAN (1384387200)
);

DELIMITER //
CREATE PROCEDURE dbcron()
BEGIN
    CALL update_log_partitions('mozpool.device_logs', 14, 1);
END
//
DELIMITER ;
