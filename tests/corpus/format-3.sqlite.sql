BEGIN TRANSACTION;
CREATE TABLE access_tokens (
	id CHAR(32) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	user_id VARCHAR(255) NOT NULL, 
	scopes VARCHAR(200) NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, 
	revoked_at DATETIME, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
CREATE TABLE active_entries (
	session_id VARCHAR(32) NOT NULL, 
	map VARCHAR(20) NOT NULL, 
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY (session_id, map, "key")
);
INSERT INTO "active_entries" VALUES('de810520169644399eb1f2c2f8f29850','context','key 0','[0,{"big":100000000000000000000000.0}]');
INSERT INTO "active_entries" VALUES('de810520169644399eb1f2c2f8f29850','context','key 1','[1,{"big":100000000000000000000000.0}]');
INSERT INTO "active_entries" VALUES('de810520169644399eb1f2c2f8f29850','context','key 2','[2,{"big":100000000000000000000000.0}]');
INSERT INTO "active_entries" VALUES('de810520169644399eb1f2c2f8f29850','preferences','currency','"USD"');
INSERT INTO "active_entries" VALUES('de810520169644399eb1f2c2f8f29850','intermediate_results','ratio','1.5');
CREATE TABLE active_queries (
	n INTEGER NOT NULL, 
	session_id VARCHAR(32) NOT NULL, 
	id VARCHAR(32) NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (n), 
	CONSTRAINT active_queries_once UNIQUE (session_id, id)
);
INSERT INTO "active_queries" VALUES(1,'de810520169644399eb1f2c2f8f29850','00000000000000000000000000000001','{"id":"00000000-0000-0000-0000-000000000001","query_type":"fundamentals","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 0","execution_time_ms":10.0,"cache_hit":false,"timestamp":"2024-12-23T15:33:00Z","provider":"sample","currency":"USD","figures":{"price":100.5}}');
INSERT INTO "active_queries" VALUES(2,'de810520169644399eb1f2c2f8f29850','00000000000000000000000000000002','{"id":"00000000-0000-0000-0000-000000000002","query_type":"price","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 1","execution_time_ms":40.0,"cache_hit":false,"timestamp":"2024-12-23T15:34:00Z","provider":"sample","currency":"USD","figures":{"price":101.5}}');
INSERT INTO "active_queries" VALUES(3,'de810520169644399eb1f2c2f8f29850','00000000000000000000000000000003','{"id":"00000000-0000-0000-0000-000000000003","query_type":"price","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 2","execution_time_ms":160.0,"cache_hit":true,"timestamp":"2024-12-23T15:35:00Z","provider":"sample","currency":"USD","figures":{"price":102.5}}');
CREATE TABLE active_sessions (
	id VARCHAR(32) NOT NULL, 
	user_id VARCHAR(255), 
	type VARCHAR(50) NOT NULL, 
	title VARCHAR(200), 
	assets TEXT NOT NULL, 
	tags TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	last_accessed_at BIGINT NOT NULL, 
	version BIGINT NOT NULL, 
	total_queries INTEGER NOT NULL, 
	cache_hits INTEGER NOT NULL, 
	first_query_at BIGINT, 
	last_query_at BIGINT, 
	query_types TEXT NOT NULL, 
	timed_queries INTEGER NOT NULL, 
	total_time_ms DOUBLE NOT NULL, 
	maps_bytes INTEGER NOT NULL, 
	history_bytes INTEGER NOT NULL, 
	format INTEGER NOT NULL, time_histogram TEXT DEFAULT '{}' NOT NULL, queries_by_day TEXT DEFAULT '{}' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "active_sessions" VALUES('de810520169644399eb1f2c2f8f29850','ann','comparative','live','["AAPL", "MSFT"]','["tech"]',1734967980000000,1734975180000000,1734968160000000,5,3,1,1734967980000000,1734968100000000,'{"fundamentals": 1, "price": 2}',3,210.0,150,868,3,'{"20": 1, "32": 1, "44": 1}','{"2024-12-23": 3}');
CREATE TABLE fiml_schema_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT fiml_schema_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "fiml_schema_version" VALUES('0003_0.3.0');
CREATE TABLE maintenance_jobs (
	name VARCHAR(50) NOT NULL, 
	holder VARCHAR(100), 
	held_until DATETIME, 
	finished_at DATETIME, 
	result JSON, 
	PRIMARY KEY (name)
);
CREATE TABLE market_cache (
	"key" VARCHAR(200) NOT NULL, 
	value TEXT NOT NULL, 
	known_at DATETIME NOT NULL, 
	fresh_until DATETIME NOT NULL, 
	keep_until DATETIME NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE rollup_marks (
	id INTEGER NOT NULL, 
	day DATE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "rollup_marks" VALUES(1,'2024-12-23');
CREATE TABLE search_pending (
	session_id CHAR(32) NOT NULL, 
	PRIMARY KEY (session_id)
);
INSERT INTO "search_pending" VALUES('75ed35dc33964935b8827bea68c1430f');
INSERT INTO "search_pending" VALUES('de810520169644399eb1f2c2f8f29850');
PRAGMA writable_schema=ON;
INSERT INTO sqlite_master(type,name,tbl_name,rootpage,sql)VALUES('table','session_fts','session_fts',0,'CREATE VIRTUAL TABLE session_fts USING fts5(words, content=''session_words'', content_rowid=''id'', tokenize=''unicode61 remove_diacritics 0'')');
CREATE TABLE 'session_fts_config'(k PRIMARY KEY, v) WITHOUT ROWID;
INSERT INTO "session_fts_config" VALUES('version',4);
CREATE TABLE 'session_fts_data'(id INTEGER PRIMARY KEY, block BLOB);
INSERT INTO "session_fts_data" VALUES(1,X'');
INSERT INTO "session_fts_data" VALUES(10,X'00000000000000');
CREATE TABLE 'session_fts_docsize'(id INTEGER PRIMARY KEY, sz BLOB);
CREATE TABLE 'session_fts_idx'(segid, term, pgno, PRIMARY KEY(segid, term)) WITHOUT ROWID;
CREATE TABLE session_holds (
	id CHAR(32) NOT NULL, 
	reason VARCHAR(500) NOT NULL, 
	held_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE session_metrics (
	id INTEGER NOT NULL, 
	session_id CHAR(32) NOT NULL, 
	user_id VARCHAR(255), 
	session_type VARCHAR(50) NOT NULL, 
	created_at DATETIME NOT NULL, 
	duration_seconds INTEGER NOT NULL, 
	total_queries INTEGER NOT NULL, 
	cache_hit_rate DOUBLE NOT NULL, 
	avg_query_time_ms DOUBLE, 
	assets_analyzed JSON NOT NULL, 
	query_type_summary JSON NOT NULL, 
	completed_normally BOOLEAN NOT NULL, 
	abandoned BOOLEAN NOT NULL, 
	ended_at DATETIME, 
	version BIGINT DEFAULT 1 NOT NULL, tags JSON DEFAULT '[]' NOT NULL, cache_hits INTEGER DEFAULT 0 NOT NULL, time_histogram JSON DEFAULT '{}' NOT NULL, queries_by_day JSON DEFAULT '{}' NOT NULL, format INTEGER DEFAULT 1 NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT session_metrics_session_id_key UNIQUE (session_id)
);
INSERT INTO "session_metrics" VALUES(1,'75ed35dc33964935b8827bea68c1430f','ann','comparative','2024-12-23 15:30:00.000000',120,3,3.33333333333333314829e-01,70.0,'["AAPL", "MSFT"]','{"fundamentals": 1, "price": 2}',1,0,'2024-12-23 15:33:00.000000',5,'["tech"]',1,'{"20": 1, "32": 1, "44": 1}','{"2024-12-23": 3}',3);
CREATE TABLE session_quarantine (
	id CHAR(32) NOT NULL, 
	user_id VARCHAR(255), 
	reason TEXT NOT NULL, 
	quarantined_at DATETIME NOT NULL, 
	record BLOB NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE session_rollups (
	id INTEGER NOT NULL, 
	day DATE NOT NULL, 
	everybody BOOLEAN NOT NULL, 
	user_id VARCHAR(255) NOT NULL, 
	session_type VARCHAR(50) NOT NULL, 
	sessions BIGINT NOT NULL, 
	ended BIGINT NOT NULL, 
	queries BIGINT NOT NULL, 
	cache_hits BIGINT NOT NULL, 
	duration_seconds BIGINT NOT NULL, 
	abandoned BIGINT NOT NULL, 
	assets JSON NOT NULL, 
	tags JSON NOT NULL, 
	query_types JSON NOT NULL, 
	time_histogram JSON NOT NULL, 
	queries_by_day JSON NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE session_tombstones (
	id CHAR(32) NOT NULL, 
	version BIGINT NOT NULL, 
	deleted_at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE session_words (
	id INTEGER NOT NULL, 
	session_id VARCHAR(32) NOT NULL, 
	words TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (session_id)
);
CREATE TABLE sessions (
	id CHAR(32) NOT NULL, 
	user_id VARCHAR(255), 
	type VARCHAR(50) NOT NULL, 
	title VARCHAR(200), 
	assets JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, 
	last_accessed_at DATETIME NOT NULL, 
	archived_at DATETIME, 
	is_archived BOOLEAN DEFAULT 0 NOT NULL, 
	tags JSON NOT NULL, 
	context JSON NOT NULL, 
	preferences JSON NOT NULL, 
	intermediate_results JSON NOT NULL, 
	metadata JSON NOT NULL, 
	history_queries JSON NOT NULL, 
	total_queries INTEGER DEFAULT 0 NOT NULL, 
	first_query_at DATETIME, 
	last_query_at DATETIME, 
	cache_hit_rate DOUBLE NOT NULL, 
	version BIGINT DEFAULT 1 NOT NULL, 
	format INTEGER DEFAULT 1 NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "sessions" VALUES('75ed35dc33964935b8827bea68c1430f','ann','comparative','archived','["AAPL", "MSFT"]','2024-12-23 15:30:00.000000','2024-12-23 17:30:00.000000','2024-12-23 15:32:00.000000','2024-12-23 15:33:00.000000',1,'["tech"]','{"key 0":[0,{"big":100000000000000000000000.0}],"key 1":[1,{"big":100000000000000000000000.0}],"key 2":[2,{"big":100000000000000000000000.0}]}','{"currency":"USD"}','{"ratio":1.5}','{}','[{"id":"00000000-0000-0000-0000-00000000000b","query_type":"fundamentals","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 0","execution_time_ms":10.0,"cache_hit":false,"timestamp":"2024-12-23T15:30:00Z","provider":"sample","currency":"USD","figures":{"price":100.5}},{"id":"00000000-0000-0000-0000-00000000000c","query_type":"price","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 1","execution_time_ms":40.0,"cache_hit":false,"timestamp":"2024-12-23T15:31:00Z","provider":"sample","currency":"USD","figures":{"price":101.5}},{"id":"00000000-0000-0000-0000-00000000000d","query_type":"price","parameters":{"symbol":"AAPL","deep":[{"€":1.5}]},"result_summary":"result 2","execution_time_ms":160.0,"cache_hit":true,"timestamp":"2024-12-23T15:32:00Z","provider":"sample","currency":"USD","figures":{"price":102.5}}]',3,'2024-12-23 15:30:00.000000','2024-12-23 15:32:00.000000',3.33333333333333314829e-01,5,3);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at DESC, id);
CREATE INDEX sessions_by_creation ON sessions (created_at DESC, id);
CREATE INDEX sessions_by_archiving ON sessions (archived_at);
CREATE INDEX session_metrics_by_creation ON session_metrics (created_at);
CREATE INDEX session_metrics_by_user ON session_metrics (user_id, created_at);
CREATE INDEX active_sessions_by_user ON active_sessions (user_id, created_at DESC, id);
CREATE INDEX active_sessions_by_creation ON active_sessions (created_at DESC, id);
CREATE INDEX active_sessions_by_expiry ON active_sessions (expires_at);
CREATE INDEX active_queries_in_order ON active_queries (session_id, n);
CREATE INDEX session_rollups_by_user ON session_rollups (user_id, everybody, day);
CREATE INDEX session_rollups_by_day ON session_rollups (day);
CREATE INDEX rollup_marks_by_day ON rollup_marks (day);
CREATE INDEX session_quarantine_by_time ON session_quarantine (quarantined_at, id);
CREATE INDEX market_cache_by_keeping ON market_cache (keep_until);
CREATE TRIGGER session_words_added AFTER INSERT ON session_words BEGIN INSERT INTO session_fts (rowid, words) VALUES (new.id, new.words); END;
CREATE TRIGGER session_words_removed AFTER DELETE ON session_words BEGIN INSERT INTO session_fts (session_fts, rowid, words) VALUES ('delete', old.id, old.words); END;
CREATE TRIGGER session_words_of_archived AFTER DELETE ON sessions WHEN NOT EXISTS (SELECT 1 FROM active_sessions WHERE id = old.id) BEGIN DELETE FROM session_words WHERE session_id = old.id; DELETE FROM search_pending WHERE session_id = old.id; END;
CREATE TRIGGER session_words_of_live AFTER DELETE ON active_sessions WHEN NOT EXISTS (SELECT 1 FROM sessions WHERE id = old.id) BEGIN DELETE FROM session_words WHERE session_id = old.id; DELETE FROM search_pending WHERE session_id = old.id; END;
CREATE TRIGGER pending_session AFTER INSERT ON active_sessions BEGIN INSERT INTO search_pending (session_id) SELECT new.id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.id); END;
CREATE TRIGGER pending_names AFTER UPDATE ON active_sessions WHEN old.title IS NOT new.title OR old.assets <> new.assets OR old.tags <> new.tags OR old.type <> new.type BEGIN INSERT INTO search_pending (session_id) SELECT new.id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.id); END;
CREATE TRIGGER pending_query AFTER INSERT ON active_queries BEGIN INSERT INTO search_pending (session_id) SELECT new.session_id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.session_id); END;
CREATE TRIGGER pending_entry AFTER INSERT ON active_entries BEGIN INSERT INTO search_pending (session_id) SELECT new.session_id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.session_id); END;
CREATE TRIGGER pending_change AFTER UPDATE ON active_entries BEGIN INSERT INTO search_pending (session_id) SELECT new.session_id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.session_id); END;
CREATE TRIGGER pending_removal AFTER DELETE ON active_entries BEGIN INSERT INTO search_pending (session_id) SELECT old.session_id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = old.session_id); END;
CREATE TRIGGER pending_archived AFTER INSERT ON sessions BEGIN INSERT INTO search_pending (session_id) SELECT new.id WHERE NOT EXISTS (SELECT 1 FROM search_pending WHERE session_id = new.id); END;
PRAGMA writable_schema=OFF;
COMMIT;
