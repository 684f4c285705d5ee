-- This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
-- If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

-- The procedures of a MySQL or MariaDB database, of any name. A statement ends with a line that holds only two slashes;
-- the migrations rely on that, and DELIMITER tells the command-line client. Comments stay outside of the procedures:
-- some clients leave them out, and `mozpool-db check` compares the texts.
--
-- The log tables have one partition a day (UTC), named p and its upper bound in seconds since 1970.

DELIMITER //

-- Partition a table from days_past days ago to days_future days ahead; the first partition takes all that is older.
DROP PROCEDURE IF EXISTS init_log_partitions
//
CREATE PROCEDURE init_log_partitions(log_table VARCHAR(64), days_past INT, days_future INT)
BEGIN
    DECLARE today BIGINT DEFAULT UNIX_TIMESTAMP() DIV 86400 * 86400;
    DECLARE bound BIGINT DEFAULT today - (days_past - 1) * 86400;
    DECLARE parts MEDIUMTEXT DEFAULT '';
    WHILE bound <= today + (days_future + 1) * 86400 DO
        SET parts = CONCAT(parts, IF(parts = '', '', ', '), 'PARTITION p', bound, ' VALUES LESS THAN (', bound, ')');
        SET bound = bound + 86400;
    END WHILE;
    SET @mozpool_statement = CONCAT(
        'ALTER TABLE `', REPLACE(log_table, '`', '``'), '` PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (', parts, ')');
    PREPARE mozpool_statement FROM @mozpool_statement;
    EXECUTE mozpool_statement;
    DEALLOCATE PREPARE mozpool_statement;
END
//

-- Move the window: first add what is missing up to days_future days ahead, then drop what is older than days_past days.
-- When nobody called for long, the first new partition bridges what lies more than two weeks back. Several servers may call
-- at the same time: a partition that is gone or there already, because another was faster, is as good.
DROP PROCEDURE IF EXISTS update_log_partitions
//
CREATE PROCEDURE update_log_partitions(log_table VARCHAR(64), days_past INT, days_future INT)
BEGIN
    DECLARE today BIGINT DEFAULT UNIX_TIMESTAMP() DIV 86400 * 86400;
    DECLARE oldest BIGINT DEFAULT today - days_past * 86400;
    DECLARE bound BIGINT;
    DECLARE parts MEDIUMTEXT DEFAULT '';
    DECLARE old_part VARCHAR(64);
    DECLARE CONTINUE HANDLER FOR 1493, 1507, 1517 BEGIN END;
    SELECT GREATEST(MAX(CAST(partition_description AS SIGNED)), oldest, today - 14 * 86400) + 86400 INTO bound
        FROM information_schema.partitions
        WHERE table_schema = DATABASE() AND table_name = log_table AND partition_name IS NOT NULL;
    WHILE bound <= today + (days_future + 1) * 86400 DO
        SET parts = CONCAT(parts, IF(parts = '', '', ', '), 'PARTITION p', bound, ' VALUES LESS THAN (', bound, ')');
        SET bound = bound + 86400;
    END WHILE;
    IF parts <> '' THEN
        SET @mozpool_statement = CONCAT('ALTER TABLE `', REPLACE(log_table, '`', '``'), '` ADD PARTITION (', parts, ')');
        PREPARE mozpool_statement FROM @mozpool_statement;
        EXECUTE mozpool_statement;
        DEALLOCATE PREPARE mozpool_statement;
    END IF;
    drop_old: LOOP
        SET old_part = (
            SELECT MIN(partition_name) FROM information_schema.partitions
            WHERE table_schema = DATABASE() AND table_name = log_table AND partition_name IS NOT NULL
                AND CAST(partition_description AS SIGNED) <= oldest);
        IF old_part IS NULL THEN
            LEAVE drop_old;
        END IF;
        SET @mozpool_statement = CONCAT('ALTER TABLE `', REPLACE(log_table, '`', '``'), '` DROP PARTITION ', old_part);
        PREPARE mozpool_statement FROM @mozpool_statement;
        EXECUTE mozpool_statement;
        DEALLOCATE PREPARE mozpool_statement;
    END LOOP;
END
//

-- What every mozpool-server calls when it starts and every hour: 14 days of logs are kept, one day ahead is prepared;
-- requests go a week after they expired, unless they are not at their end or still hold a device.
DROP PROCEDURE IF EXISTS dbcron
//
CREATE PROCEDURE dbcron()
BEGIN
    CALL update_log_partitions('device_logs', 14, 1);
    CALL update_log_partitions('request_logs', 14, 1);
    DELETE FROM requests
        WHERE expires < UTC_TIMESTAMP() - INTERVAL 7 DAY
            AND (state = 'closed' OR LEFT(state, 7) = 'failed_')
            AND NOT EXISTS (SELECT 1 FROM device_requests WHERE device_requests.request_id = requests.id);
END
//

-- For rsyslog: a line that a device logged, at a time in UTC. Lines of unknown devices are dropped; a time that is none,
-- or that no partition is kept for, becomes now; when that is for want of today's partition, because nobody called for
-- days, it is made first. Whatever the line holds, it is no error, which would be the end of the line: the parameters take
-- any bytes, in whatever characters the caller's connection has, and what is not UTF-8 is read as Latin-1. By way of UTF-16
-- because utf8mb4 lets half a surrogate pair pass, which readers choke on.
DROP PROCEDURE IF EXISTS insert_device_log_entry
//
CREATE PROCEDURE insert_device_log_entry(device LONGBLOB, logged_at LONGBLOB, log_source LONGBLOB, log_message LONGBLOB)
BEGIN
    DECLARE zone VARCHAR(64) DEFAULT @@SESSION.time_zone;
    DECLARE logged_by INT UNSIGNED DEFAULT (
        SELECT id FROM devices WHERE name = CONVERT(SUBSTRING_INDEX(LEFT(device, 256), '.', 1) USING latin1));
    DECLARE moment DATETIME DEFAULT NULL;
    DECLARE source_text, message_text LONGTEXT CHARACTER SET utf8mb4 DEFAULT NULL;
    IF logged_by IS NOT NULL THEN
        SET time_zone = '+00:00';
        BEGIN
            DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END;
            SET moment = CAST(CONVERT(LEFT(logged_at, 64) USING latin1) AS DATETIME);
            SET source_text = CONVERT(CONVERT(CONVERT(log_source USING utf8mb4) USING utf16) USING utf8mb4);
            SET message_text = CONVERT(CONVERT(CONVERT(log_message USING utf8mb4) USING utf16) USING utf8mb4);
        END;
        SET source_text = LEFT(COALESCE(source_text, CONVERT(log_source USING latin1), ''), 32);
        SET message_text = LEFT(TRIM(COALESCE(message_text, CONVERT(log_message USING latin1), '')), 16000);
        IF moment IS NULL OR moment < NOW() - INTERVAL 14 DAY OR moment >= CURRENT_DATE() + INTERVAL 2 DAY THEN
            SET moment = NOW();
        END IF;
        BEGIN
            DECLARE CONTINUE HANDLER FOR 1292, 1526
            BEGIN
                CALL update_log_partitions('device_logs', 14, 1);
                INSERT INTO device_logs (device_id, ts, source, message)
                    VALUES (logged_by, NOW(), source_text, message_text);
            END;
            INSERT INTO device_logs (device_id, ts, source, message)
                VALUES (logged_by, moment, source_text, message_text);
        END;
        SET time_zone = zone;
    END IF;
END
//

DELIMITER ;
